"""S0-7, S0-8, S1-1: Rosenbrock's function."""

import math

import torch

from experiments.criteria import below, solves
from experiments.experiment import Budget, Criterion, Experiment, Finding
from experiments.methods import DENSE, psgd, sgd
from experiments.problem import Problem
from experiments.problems.rosenbrock import Rosenbrock
from experiments.results import Results
from experiments.training import Method, Race
from psgd_optim import FiniteDifference, Newton, named
from psgd_optim.criteria import GradientWhitening

_COLUMNS = {"loss": "final value", "steps": "iterations to 1e-10"}
_EXACT, _DIFFERENCES, _CENTRAL = "exact products", "differences", "central differences"


def _make(case: str, seed: int, device: torch.device) -> Problem:
    return Rosenbrock(device)


def _dense(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
    return named.dense_newton(problem.parameters, lr, precond_lr=0.2, init_scale=0.1, seed=seed)


def _by_differences(central: bool) -> Method:
    """Return what `_dense` is, with differences of gradients."""
    criterion = Newton(damping=0.0, source=FiniteDifference(central=central))
    return Method(build=psgd(DENSE, 0.2, criterion, init_scale=0.1), rates=(0.5,))


def _as_fast(name: str, other: str, factor: float) -> Criterion:
    def check(results: Results) -> Finding:
        ours, theirs = (results.mean(each, "steps") for each in (name, other))
        holds = max(ours, theirs) <= factor * min(ours, theirs)
        return Finding(holds, f"{ours:.4g} and {theirs:.4g} iterations")

    return Criterion(f"{name} and {other} take as many iterations, within {factor:g} times", check)


def _always_within(method: str, iterations: int, of: int) -> Criterion:
    """Return that every seed, of so many or more, is solved in a number of iterations."""

    def check(results: Results) -> Finding:
        solved, steps = (results.values(method, name) for name in ("solved", "steps"))
        holds = len(steps) >= of and all(x == 1.0 for x in solved) and max(steps) <= iterations
        return Finding(holds, ", ".join(f"{x:g}" for x in sorted(steps)))

    return Criterion(f"{method} takes at most {iterations} iterations with every seed", check)


def _never_below(method: str, value: float) -> Criterion:
    """Return that a method ends above a value with every seed."""

    def check(results: Results) -> Finding:
        least = min(results.values(method, "loss"), default=-math.inf)
        return Finding(least > value, f"{least:.3g} at least")

    return Criterion(f"{method} ends above {value:g} with every seed", check)


def _race(methods: dict[str, Method], steps: int = 300, seeds: int = 20) -> Race:
    return Race(
        make=_make,
        methods=methods,
        steps=steps,
        seeds=seeds,
        target="loss",
        columns=_COLUMNS,
        evaluate_every=1,
        solved=1e-10,
    )


_PSGD, _FISHER = "PSGD dense, Newton", "PSGD dense, Fisher"
_DESCENT, _MOMENTUM, _NESTEROV = "gradient descent", "momentum", "Nesterov momentum"


def _nesterov(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
    return torch.optim.SGD(problem.parameters, lr, momentum=0.9, nesterov=True)


_DENSE = Method(build=_dense, rates=(0.5,))
_WHITENED = psgd(DENSE, 0.01, GradientWhitening(damping=0.1), init_scale=0.1)
_FIRST_ORDER = {
    _DESCENT: Method(build=sgd(), rates=(0.002,)),
    _MOMENTUM: Method(build=sgd(0.9), rates=(0.002,)),
    _NESTEROV: Method(build=_nesterov, rates=(0.001,)),
}

EXPERIMENTS = (
    Experiment(
        id="S0-7",
        title="Rosenbrock's function, the package's demonstration",
        claim="PSGD takes some 200 iterations.",
        budgets={
            "quick": Budget(
                setting="As the Newton type in S1-1, with twenty draws of the probes.",
                is_faithful=True,
                minutes=0.1,
                study=_race({_PSGD: _DENSE}),
                criteria=(solves(_PSGD, at_least=19, of=20),),
            )
        },
    ),
    Experiment(
        id="S0-8",
        title="Differences of gradients instead of Hessian-vector products",
        claim="Results are typically similar.",
        budgets={
            "quick": Budget(
                setting="On S1-1's problem in double precision, the differences' probes of the "
                "size of the root of the rounding error; not on S0-1's network.",
                minutes=0.3,
                study=_race({
                    _EXACT: _DENSE,
                    _DIFFERENCES: _by_differences(central=False),
                    _CENTRAL: _by_differences(central=True),
                }),
                criteria=(
                    *(solves(n, at_least=19, of=20) for n in (_EXACT, _DIFFERENCES, _CENTRAL)),
                    _as_fast(_DIFFERENCES, _EXACT, 1.1),
                    _as_fast(_CENTRAL, _EXACT, 1.1),
                ),
            )
        },
    ),
    Experiment(
        id="S1-1",
        title="Rosenbrock's function",
        claim="Newton-type PSGD takes about 200 iterations, the least of five methods; the "
        "Fisher type performs poorly.",
        budgets={
            "quick": Budget(
                setting="As in the paper: 10,000 iterations; triangular Q from 0.1 I; Newton with "
                "steps of 0.5, and 0.2 for Q, Fisher (the root) with 0.001, and 0.01 for Q, and a "
                "damping of 0.1. Momentum and Nesterov's as sums of gradients with a decay of 0.9; "
                "the paper does not say whether it averages. Runs end at 1e-10, where the paper's "
                "curves go on to 1e-20; three draws of the probes here, twenty in S0-7.",
                is_faithful=True,
                minutes=1.0,
                study=_race(
                    {
                        _PSGD: _DENSE,
                        _FISHER: Method(build=_WHITENED, rates=(0.001,)),
                        **_FIRST_ORDER,
                    },
                    steps=10_000,
                    seeds=3,
                ),
                criteria=(
                    _always_within(_PSGD, 300, of=3),
                    *(below(_PSGD, name, "steps") for name in _FIRST_ORDER),
                    _never_below(_FISHER, 1e-8),
                ),
            )
        },
    ),
)
