"""Who takes part: what a contender is, those of torch, and PSGD in every form."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from psgd_optim import (
    PSGD,
    BlockTriangular,
    Dense,
    Diagonal,
    DirectSum,
    Fitting,
    Joint,
    Kron,
    LowRank,
    Permutation,
    Preconditioner,
    SparseLU,
    Split,
)
from psgd_optim.axis_plan import SCAN, SCAW, AxisPlan
from psgd_optim.forms.closed_diagonal import ClosedDiagonal
from psgd_optim.forms.diagonal import Scalar
from psgd_optim.geometry import EQ, QUAD
from psgd_optim.permutation_groups import BUTTERFLY
from psgd_optim.scope import Scope, by_axes
from step_bench.models import Named

LR = 1e-6
"""So small that the parameters, which all contenders share, stay where they are."""
WHOLE, APPLY, FIT = "step", "apply", "fit"
"""Phases: a step of an optimizer that has only one kind, and steps without and with a fit."""

Optimizers = list[torch.optim.Optimizer]
"""What steps the parameters together, each its own part of them."""


class Refusal(Exception):  # noqa: N818 -- no error: it ends in a note of the table
    """A contender cannot step a model; the message says why."""


class Gate:
    """Decides for an optimizer, from outside, whether its next step fits the preconditioner.

    Args:
        long_run: The probability that it gives for past steps: `PSGD` plans with it.
        closed: The probability that it gives when closed; above 0 for optimizers that divide by it.
    """

    def __init__(self, long_run: float = 0.03, closed: float = 0.0) -> None:
        self.long_run = long_run
        self.closed = closed
        self.is_open = True
        self.now = 0

    def __call__(self, step: object) -> float:
        """Return the probability of a fit in the step that is next, or in one before."""
        if isinstance(step, int) and step < self.now:
            return self.long_run
        return 1.0 if self.is_open else self.closed


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to step.

    Args:
        name: In tables and on the command line.
        build: Makes the optimizers from the parameters, the gate that opens their fits, and the
            most bytes of state; raises a `Refusal` if it cannot step these parameters.
        phases: The kinds of steps it has, `(WHOLE,)` or `(APPLY, FIT)`.
        period: Steps after which its cost repeats; a sample is the mean over that many.
        moments: Averages of the size of the parameters that any such step must keep.
        form: The form or scope, if it is a `PSGD`.
        distribution: The package it comes from, if that is not always installed.
        compiles: Whether its first steps are spent on making graphs.
        note: What the table says about it.
    """

    name: str
    build: Callable[[Named, Gate, float], Optimizers]
    phases: tuple[str, ...] = (WHOLE,)
    period: int = 1
    moments: int = 1
    form: Preconditioner | Scope | None = None
    distribution: str | None = None
    compiles: bool = False
    note: str = ""


def _adamw(named: Named, gate: Gate, limit: float, *, fused: bool) -> Optimizers:
    return [torch.optim.AdamW(named, LR, weight_decay=0.0, fused=fused, foreach=not fused)]


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix of a hidden layer, as Muon's description has it."""
    return parameter.ndim == 2 and "embedding" not in name and "head" not in name


def _muon(named: Named, gate: Gate, limit: float) -> Optimizers:
    """Return Muon for the hidden matrices and AdamW for the rest."""
    hidden = [pair for pair in named if is_hidden_matrix(*pair)]
    rest = [pair for pair in named if not is_hidden_matrix(*pair)]
    if not hidden:
        raise Refusal("the model has no hidden matrix")
    muon: Optimizers = [
        torch.optim.Muon(hidden, LR, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    ]
    return muon + (_adamw(rest, gate, limit, fused=True) if rest else [])


def _psgd(
    named: Named,
    gate: Gate,
    limit: float,
    *,
    form: Preconditioner | Scope,
    compiles: bool = False,
    captures: bool = False,
) -> Optimizers:
    if captures and any(parameter.device.type != "cuda" for _, parameter in named):
        raise Refusal("there are no CUDA graphs on this device")
    fitting = Fitting(gate=gate, max_memory=limit)
    psgd = partial(PSGD, compile=compiles, capturable=captures)
    try:
        return [psgd(named, LR, form=form, momentum=0.9, fitting=fitting)]
    except ValueError as error:
        raise Refusal(str(error)) from error


def _psgd_always(
    named: Named, gate: Gate, limit: float, *, form: Preconditioner | Scope
) -> Optimizers:
    """Return a PSGD that fits in every step, and plans for that."""
    try:
        fitting = Fitting(gate=1.0, max_memory=limit)
        return [PSGD(named, LR, form=form, momentum=0.9, fitting=fitting)]
    except ValueError as error:
        raise Refusal(str(error)) from error


def _always(name: str, form: Preconditioner | Scope) -> Contender:
    build = partial(_psgd_always, form=form)
    return Contender(name=f"psgd-{name}-every-step", build=build, phases=(FIT,), form=form)


def _ours(name: str, form: Preconditioner | Scope) -> Contender:
    return Contender(
        name=f"psgd-{name}", build=partial(_psgd, form=form), phases=(APPLY, FIT), form=form
    )


def _for_matrices(plan: AxisPlan) -> Scope:
    """Return a plan of two factors for matrices, and a diagonal for other shapes."""
    return DirectSum((by_axes(2, 2), Kron(plan=plan, geometry=EQ)), otherwise=Diagonal())


ADAMW_FUSED = "adamw-fused"
MUON = "muon"

STANDARD = (
    Contender(name=ADAMW_FUSED, build=partial(_adamw, fused=True), moments=2),
    Contender(name="adamw-foreach", build=partial(_adamw, fused=False), moments=2),
    Contender(name=MUON, build=_muon, note="matrices of hidden layers; fused AdamW for the rest"),
)
"""Those of torch."""

_DENSE = Kron(max_skew=math.inf)
_QUAD = Kron(max_skew=math.inf, geometry=QUAD)
_COARSE = torch.bfloat16

OURS = (
    _ours("long-diagonal", Kron()),
    _ours("blocks-128", Split(_DENSE, 128)),
    _ours("both-dense", _DENSE),
    _ours("both-dense-quad", _QUAD),
    _always("both-dense", _DENSE),
    _always("both-dense-quad", _QUAD),
    _ours("long-diagonal-bf16", Kron(dtype=_COARSE)),
    _ours("both-dense-bf16", Kron(max_skew=math.inf, dtype=_COARSE)),
    _ours("all-diagonal", Kron(max_size=0)),
    _ours("scan", _for_matrices(SCAN)),
    _ours("scaw", _for_matrices(SCAW)),
    _ours("diagonal", Diagonal()),
    _ours("closed-diagonal", ClosedDiagonal()),
    _ours("scalar", Scalar()),
    _ours("dense", Dense()),
    _ours("lowrank", Joint(LowRank())),
    _ours("sparse-lu", Joint(SparseLU())),
    _ours("arrow", Joint(BlockTriangular())),
    _ours("permutation", Joint(Permutation())),
    _ours("butterfly", Joint(Permutation(group=BUTTERFLY))),
)
"""PSGD in every form that steps any parameter; the first eight are the headline."""

COMPILED = Contender(
    name="psgd-long-diagonal-compiled",
    build=partial(_psgd, form=Kron(), compiles=True),
    phases=(APPLY, FIT),
    compiles=True,
    note="compiled",
)
"""The first of them as graphs; clocks around functions do not see into these."""

CAPTURED = Contender(
    name="psgd-long-diagonal-captured",
    build=partial(_psgd, form=Kron(), captures=True),
    phases=(APPLY, FIT),
    compiles=True,
    note="captured in CUDA graphs",
)
"""The same, where there is a device for it."""

HEADLINE = tuple(contender.name for contender in OURS[:8])
