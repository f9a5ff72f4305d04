"""The criteria that experiments share: orderings, bounds, and how often a problem was solved."""

import math
import operator
from collections.abc import Callable, Sequence

from experiments.experiment import Criterion, Finding
from experiments.results import Results


def below(
    better: str, worse: str, figure: str, *, factor: float = 1.0, case: str = ""
) -> Criterion:
    """Return that a method's mean is below a factor of another's, which may have diverged."""

    def check(results: Results) -> Finding:
        ours, theirs = (results.mean(name, figure, case) for name in (better, worse))
        told = " against ".join(_told(results, name, figure, case) for name in (better, worse))
        return Finding(ours < factor * theirs, told)

    times = "" if factor == 1 else f"{factor:g} times "
    return Criterion(f"{better} below {times}{worse}{_at(case)}", check, figure)


def ordered(methods: Sequence[str], figure: str, *, case: str = "") -> Criterion:
    """Return that the methods' means rise in the order given."""

    def check(results: Results) -> Finding:
        means = [results.mean(name, figure, case) for name in methods]
        rises = all(map(operator.lt, means, means[1:]))
        told = ", ".join(f"{name} {_told(results, name, figure, case)}" for name in methods)
        return Finding(rises, told)

    return Criterion(f"{' < '.join(methods)}{_at(case)}", check, figure)


def at_most(method: str, figure: str, bound: float, *, case: str = "") -> Criterion:
    """Return that a method's mean is at most a number."""
    return _bounded(method, figure, bound, case, operator.le, "at most")


def at_least(method: str, figure: str, bound: float, *, case: str = "") -> Criterion:
    """Return that a method's mean is at least a number."""
    return _bounded(method, figure, bound, case, operator.ge, "at least")


def solves(method: str, at_least: int, of: int, *, case: str = "") -> Criterion:
    """Return that a method solves the problem with so many of the seeds."""

    def check(results: Results) -> Finding:
        solved = results.values(method, "solved", case)
        count = sum(value == 1.0 for value in solved)
        return Finding(count >= at_least and len(solved) >= of, f"{count} of {len(solved)}")

    return Criterion(f"{method} solves it with {at_least} of {of} seeds{_at(case)}", check)


def never_solves(method: str, *, case: str = "") -> Criterion:
    """Return that a method solves the problem with no seed."""

    def check(results: Results) -> Finding:
        solved = results.values(method, "solved", case)
        count = sum(value == 1.0 for value in solved)
        return Finding(count == 0 and bool(solved), f"{count} of {len(solved)}")

    return Criterion(f"{method} solves it with no seed{_at(case)}", check)


def _bounded(
    method: str,
    figure: str,
    bound: float,
    case: str,
    compare: Callable[[float, float], bool],
    words: str,
) -> Criterion:
    def check(results: Results) -> Finding:
        mean = results.mean(method, figure, case)
        # What diverged is above every bound, but nothing was measured that could show a claim.
        holds = math.isfinite(mean) and compare(mean, bound)
        return Finding(holds, _told(results, method, figure, case))

    return Criterion(f"{method} {words} {bound:g}{_at(case)}", check, figure)


def _told(results: Results, method: str, figure: str, case: str) -> str:
    """Return a method's mean for a reader."""
    values = results.values(method, figure, case)
    lost = sum(map(math.isinf, values))
    if lost:
        return f"diverged ({lost} of {len(values)})"
    return f"{results.mean(method, figure, case):.4g}" if values else "no run"


def _at(case: str) -> str:
    return f" ({case})" if case else ""
