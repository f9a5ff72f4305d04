"""S0-7, S0-8, S1-1: Rosenbrock's function."""

import torch

from experiments.criteria import at_least, solves
from experiments.experiment import Budget, Criterion, Experiment, Finding
from experiments.problem import Problem
from experiments.problems.rosenbrock import Rosenbrock
from experiments.results import Results
from experiments.training import Method, Race
from psgd_optim import PSGD, Dense, FiniteDifference, Fitting, Joint, Newton, named
from psgd_optim.factors.matrix import TRIANGULAR
from psgd_optim.geometry import EQ
from psgd_optim.step_size import MaxEntry

_COLUMNS = {"loss": "final value", "steps": "iterations to 1e-10"}
_EXACT, _DIFFERENCES, _CENTRAL = "exact products", "differences", "central differences"


def _make(case: str, seed: int, device: torch.device) -> Problem:
    return Rosenbrock(device)


def _dense(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
    return named.dense_newton(problem.parameters, lr, precond_lr=0.2, init_scale=0.1, seed=seed)


def _by_differences(central: bool) -> Method:
    """Return what `_dense` is, with differences of gradients."""

    def build(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
        form = Joint(Dense(geometry=EQ, factor=TRIANGULAR, normaliser=MaxEntry()))
        return PSGD(
            problem.parameters,
            lr,
            form=form,
            criterion=Newton(damping=0.0, source=FiniteDifference(central=central)),
            momentum=0.0,
            clip=(),
            fitting=Fitting(precond_lr=0.2, gate=1.0, init_scale=0.1, seed=seed),
        )

    return Method(build=build, rates=(0.5,))


def _as_fast(name: str, other: str, factor: float) -> Criterion:
    def check(results: Results) -> Finding:
        ours, theirs = (results.mean(each, "steps") for each in (name, other))
        holds = max(ours, theirs) <= factor * min(ours, theirs)
        return Finding(holds, f"{ours:.4g} and {theirs:.4g} iterations")

    return Criterion(f"{name} and {other} take as many iterations, within {factor:g} times", check)


def _race(methods: dict[str, Method]) -> Race:
    return Race(
        make=_make,
        methods=methods,
        steps=300,
        seeds=20,
        target="loss",
        columns=_COLUMNS,
        evaluate_every=1,
        solved=1e-10,
    )


_PSGD, _DESCENT = "PSGD dense", "gradient descent"


def _descent(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
    return torch.optim.SGD(problem.parameters, lr)


_DENSE = Method(build=_dense, rates=(0.5,))

EXPERIMENTS = (
    Experiment(
        id="S0-7",
        title="Rosenbrock's function, the package's demonstration",
        claim="PSGD takes some 200 iterations.",
        budgets={
            "quick": Budget(
                setting="As S1-1, without gradient descent.",
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
                "size of the root of the rounding error.",
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
        claim="Newton-type PSGD takes about 200 iterations; gradient descent does not get there.",
        budgets={
            "quick": Budget(
                setting="As in the paper: triangular Q from 0.1 I, step 0.5 and 0.2 for Q.",
                is_faithful=True,
                minutes=0.2,
                study=_race({
                    _PSGD: _DENSE,
                    _DESCENT: Method(build=_descent, rates=(0.002,)),
                }),
                criteria=(
                    solves(_PSGD, at_least=19, of=20),
                    at_least(_DESCENT, "loss", 1e-4),
                ),
            )
        },
    ),
)
