"""A race: methods, each at its best of a few learning rates, on the same draws of a problem."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from experiments.experiment import Criterion, Finding
from experiments.problem import Problem, generator
from experiments.results import DIVERGED, FINISHED, Key, Outcome, Results
from psgd_optim.tools.stepping import take_step

NO_OP, RANDOM_STEP = "no step (control)", "random steps (control)"
CONTROLS = (NO_OP, RANDOM_STEP)
RANDOM_SIZE = 1e-2
"""Root mean square of what a step of the random control adds to a parameter."""
MOST_POINTS = 100
"""Of a stored curve."""


def constant(progress: float) -> float:
    """Return a factor of 1."""
    return 1.0


def falling(final: float) -> Callable[[float], float]:
    """Return an exponential from 1 down to a final factor."""
    return lambda progress: final**progress


@dataclass(frozen=True, kw_only=True)
class Method:
    """How one method steps."""

    build: Callable[[Problem, float, int], torch.optim.Optimizer]
    """Makes the optimizer of a problem, with a learning rate and a seed."""
    rates: tuple[float, ...]
    """Learning rates to try, the first the method's own default."""
    max_norm: float = 0.0
    """Largest norm of the gradient; 0 for no clipping."""
    schedule: Callable[[float], float] = constant
    """Factor of the learning rate by progress in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Race:
    """Methods on the draws of a problem.

    Every rate is tried with the first seed, the best of them with the others too. Two controls run
    along, which must not look good: one takes no step, the other random ones.
    """

    make: Callable[[str, int, torch.device], Problem]
    """Draws the problem of a case from a seed."""
    methods: Mapping[str, Method]
    steps: int
    seeds: int
    target: str
    columns: Mapping[str, str]
    cases: tuple[str, ...] = ("",)
    evaluate_every: int = 0
    """0 for an evaluation at the end alone."""
    solved: float = -math.inf
    """A target at which a run stops early: its step and `solved` are among its figures."""
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Methods of a case, where not all of them run in it."""
    steps_of: Mapping[str, int] = field(default_factory=dict)
    """Steps of a case, where not all have the same."""

    @property
    def labels(self) -> Sequence[str]:
        """Methods and controls."""
        return (*self.methods, *CONTROLS)

    def default_rate(self, label: str) -> float | None:
        """Return the first of a method's rates."""
        return self.methods[label].rates[0] if label in self.methods else None

    def next_keys(self, results: Results) -> Sequence[Key]:
        """Return what is to be run next: first all trials, then other seeds of the best rates."""
        trials = [
            Key(case, name, rate, 0, self._steps(case))
            for case in self.cases
            for name, rates in self._entrants(case).items()
            for rate in rates
        ]
        missing = [key for key in trials if key not in results]
        if missing:
            return missing
        others = [
            Key(case, name, results.best_rate(name, case), seed, self._steps(case))
            for case in self.cases
            for name in self._entrants(case)
            if name not in CONTROLS
            for seed in range(1, self.seeds)
        ]
        return [key for key in others if key not in results]

    def run(self, key: Key, device: torch.device) -> Outcome:
        """Train once."""
        problem = self.make(key.case, key.seed, device)
        if key.method in CONTROLS:
            return self._control(problem, key)
        method = self.methods[key.method]
        rate = method.rates[0] if key.rate is None else key.rate
        optimizer = method.build(problem, rate, key.seed)
        curve: list[tuple[float, float]] = []
        for step in range(key.steps):
            factor = method.schedule(step / key.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            loss = _step(optimizer, problem, step, method.max_norm)
            is_due = self.evaluate_every and (step + 1) % self.evaluate_every == 0
            if not is_due and step + 1 < key.steps:
                continue
            figures = dict(problem.evaluate())
            if not (math.isfinite(float(loss)) and math.isfinite(figures[self.target])):
                return Outcome(figures={"steps": step + 1}, status=DIVERGED, curve=_thinned(curve))
            curve.append((step + 1, figures[self.target]))
            if figures[self.target] <= self.solved:
                break
        return self._outcome(figures, step + 1, curve)

    def criteria(self) -> Sequence[Criterion]:
        """Return that the controls fail."""
        return (Criterion("both controls are worse than the best method", self._controls_fail),)

    def _outcome(
        self, figures: Mapping[str, float], steps: int, curve: Sequence[tuple[float, float]]
    ) -> Outcome:
        more = {"steps": float(steps)}
        if self.solved > -math.inf:
            more["solved"] = float(figures[self.target] <= self.solved)
        return Outcome(figures={**figures, **more}, status=FINISHED, curve=_thinned(curve))

    def _control(self, problem: Problem, key: Key) -> Outcome:
        """Take no step, or the random walk that many random steps come to."""
        if key.method == RANDOM_STEP:
            draw = generator(key.seed, -1)
            with torch.no_grad():
                for p in problem.parameters:
                    noise = torch.randn(p.shape, generator=draw, dtype=p.dtype)
                    p.add_(noise.to(p.device), alpha=RANDOM_SIZE * math.sqrt(key.steps))
        figures = dict(problem.evaluate())
        if not math.isfinite(figures[self.target]):
            return Outcome(figures={}, status=DIVERGED)
        return self._outcome(figures, key.steps, ())

    def _controls_fail(self, results: Results) -> Finding:
        """Whether, in every case, some method ends below both controls with their seed."""
        told = ""
        for case in self.cases:
            ours = self._first(results, self._methods(case), case)
            control = self._first(results, CONTROLS, case)
            if not told or not ours < control:
                told = f"{case + ': ' if case else ''}best {ours:.3g}, controls {control:.3g}"
            if not ours < control:
                return Finding(holds=False, evidence=told)
        return Finding(holds=True, evidence=told)

    def _first(self, results: Results, names: Sequence[str], case: str) -> float:
        """Return the lowest target of some methods with the first seed."""
        return min(results.values(name, self.target, case)[0] for name in names)

    def _methods(self, case: str) -> Sequence[str]:
        return [name for name in self.methods if name in self.only.get(case, self.methods)]

    def _entrants(self, case: str) -> Mapping[str, Sequence[float | None]]:
        entrants: dict[str, Sequence[float | None]] = {
            name: self.methods[name].rates for name in self._methods(case)
        }
        return {**entrants, **dict.fromkeys(CONTROLS, (None,))}

    def _steps(self, case: str) -> int:
        return self.steps_of.get(case, self.steps)


def _thinned(curve: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Return some points of a curve, the last among them, with the digits that a picture shows."""
    kept = list(curve[:: -(-len(curve) // MOST_POINTS) or 1])
    if curve and kept[-1] != curve[-1]:
        kept.append(curve[-1])
    return [(step, float(f"{value:.5g}")) for step, value in kept]


def _step(optimizer: torch.optim.Optimizer, problem: Problem, step: int, max_norm: float) -> Tensor:
    return take_step(optimizer, problem.parameters, lambda: problem.loss(step), max_norm)
