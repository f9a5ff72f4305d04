"""S0-9, S1-8: the decomposition of a random tensor, with every preconditioner and variant."""

import torch

from experiments.criteria import at_most, below
from experiments.experiment import Budget, Criterion, Experiment, Finding
from experiments.methods import (
    DENSE,
    EXACT,
    KRON,
    SCALING,
    SPARSE_LU,
    X_MATRICES,
    Build,
    low_rank,
    psgd,
)
from experiments.plan import NO_OP
from experiments.problem import Problem
from experiments.problems.tensor_rank import TensorRank
from experiments.results import Results
from experiments.training import Method, Race
from psgd_optim import PSGD, Diagonal, Fitting, Joint, Kron
from psgd_optim.axis_plan import SCAW
from psgd_optim.forms.base import Preconditioner
from psgd_optim.geometry import EQ
from psgd_optim.scope import Scope
from psgd_optim.step_size import MaxEntry

_RATE, _FIT_RATE, _SCALE = 0.1, 0.1, 0.1
_COLUMNS = {"loss": "final loss", "share": "squared error by that of a constant"}
_FORMS: dict[str, Preconditioner | Scope] = {
    "dense": DENSE,
    "diagonal": Joint(Diagonal(elementwise=False, normaliser=MaxEntry())),
    "sparse LU": SPARSE_LU,
    "Kronecker": KRON,
    "SCAW": Kron(plan=SCAW, geometry=EQ, normaliser=MaxEntry()),
    "SCAN": SCALING,
    "X-matrix": X_MATRICES,
    "low rank 10": low_rank(10),
}


def _make(case: str, seed: int, device: torch.device) -> Problem:
    return TensorRank(seed, device)


def _every_form() -> dict[str, Method]:
    """Return PSGD with each form, which steps with the last iteration's Q, as all of S0."""
    return {
        name: _variant(psgd(form, _FIT_RATE, init_scale=_SCALE, update_first=False))
        for name, form in _FORMS.items()
    }


def _beside(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
    """Return what fits its preconditioner beside the next step."""
    fitting = Fitting(precond_lr=_FIT_RATE, gate=1.0, init_scale=_SCALE, seed=seed, overlap=True)
    parameters = problem.parameters
    return PSGD(parameters, lr, form=KRON, criterion=EXACT, momentum=0.0, clip=(), fitting=fitting)


def _variant(build: Build) -> Method:
    return Method(build=build, rates=(_RATE,))


_IN_TURN, _LATE, _BESIDE = "every step", "used one step later", "fitted beside the step"
_VARIANTS = {
    _IN_TURN: _variant(psgd(KRON, _FIT_RATE, init_scale=_SCALE)),
    _LATE: _variant(psgd(KRON, _FIT_RATE, init_scale=_SCALE, update_first=False)),
    _BESIDE: _variant(_beside),
    "one step in four": _variant(psgd(KRON, _FIT_RATE, init_scale=_SCALE, gate=0.25)),
    "momentum 0.9": _variant(psgd(KRON, _FIT_RATE, init_scale=_SCALE, momentum=0.9)),
}


def _to_the_noise(method: str) -> tuple[Criterion, Criterion]:
    """Return that the loss falls tenfold, and to a squared error as that of a constant."""
    return (below(method, NO_OP, "loss", factor=0.1), at_most(method, "share", 1.05))


def _same(one: str, other: str) -> Criterion:
    def check(results: Results) -> Finding:
        ours, theirs = (results.values(name, "loss") for name in (one, other))
        return Finding(ours == theirs, f"{ours[0]:.9g} and {theirs[0]:.9g} with the first seed")

    return Criterion(f"{one} and {other} end with the same numbers", check)


EXPERIMENTS = (
    Experiment(
        id="S0-9",
        title="Tensor rank decomposition",
        claim="The package's demonstration: every preconditioner lowers the loss to the noise.",
        budgets={
            "quick": Budget(
                setting="As in the package: 10 x 20 x 50, rank 5, 100 iterations, steps of 0.1 for "
                "parameters and Q, Q from 0.1 I. Forms of S2 beside those of S0.",
                is_faithful=True,
                minutes=0.4,
                study=Race(
                    make=_make,
                    methods=_every_form(),
                    steps=100,
                    seeds=5,
                    target="loss",
                    columns=_COLUMNS,
                    evaluate_every=5,
                ),
                criteria=tuple(criterion for name in _FORMS for criterion in _to_the_noise(name)),
            )
        },
    ),
    Experiment(
        id="S1-8",
        title="Variants of updating the preconditioner",
        claim="It may be updated in parallel, less often, and go with momentum.",
        budgets={
            "quick": Budget(
                setting="Kronecker products on the tensor of S0-9, for 200 iterations.",
                minutes=0.5,
                study=Race(
                    make=_make,
                    methods=_VARIANTS,
                    steps=200,
                    seeds=5,
                    target="loss",
                    columns=_COLUMNS,
                    evaluate_every=5,
                ),
                criteria=(
                    *(criterion for name in _VARIANTS for criterion in _to_the_noise(name)),
                    _same(_LATE, _BESIDE),
                ),
            )
        },
    ),
)
