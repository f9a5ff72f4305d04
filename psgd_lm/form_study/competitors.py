"""The optimizers that several problems share."""

from collections.abc import Callable

import torch
from torch import nn

from psgd_lm.form_study.trial import Candidate, Optimizers, unchanged
from psgd_optim import PSGD, ClipNorm, Fitting, MomentumWhitening, Newton
from psgd_optim.criteria import Criterion
from psgd_optim.curvature import PairSource
from psgd_optim.forms.base import Preconditioner
from psgd_optim.scope import Scope
from psgd_optim.types import Rate

BETAS = (0.9, 0.99)
NEWTON_LRS = (0.1, 0.3, 0.9)
"""Relative to a full Newton step."""


def adamw() -> Candidate:
    """Return AdamW, which every problem is measured against."""

    def build(model: nn.Module, lr: float, gate: float) -> Optimizers:
        return [torch.optim.AdamW(model.parameters(), lr, BETAS, weight_decay=0.0)]

    return Candidate(name="AdamW", build=build)


def whitening(
    name: str,
    form: Preconditioner | Scope,
    prepare: Callable[[nn.Module], nn.Module] = unchanged,
    criterion: Criterion = MomentumWhitening(),  # noqa: B008 -- frozen
) -> Candidate:
    """Return PSGD with its defaults and a form or scope.

    Args:
        name: In tables.
        form: The form or scope.
        prepare: What it needs the model to be.
        criterion: What it whitens.

    Returns:
        The candidate.
    """

    def build(model: nn.Module, lr: float, gate: float) -> Optimizers:
        fitting = Fitting(gate=gate)
        return [PSGD(model.named_parameters(), lr, form=form, criterion=criterion, fitting=fitting)]

    return Candidate(name=name, build=build, prepare=prepare)


def newton(
    name: str,
    form: Preconditioner | Scope,
    source: PairSource | None = None,
    precond_lr: Rate = Fitting.precond_lr,
) -> Candidate:
    """Return Newton-type PSGD without momentum, as its papers use it on recurrent networks.

    Args:
        name: In tables.
        form: The form or scope.
        source: Where the pairs come from; exact Hessian-vector products if `None`.
        precond_lr: Step size of `Q`.

    Returns:
        The candidate.
    """
    criterion = Newton() if source is None else Newton(source=source)

    def build(model: nn.Module, lr: float, gate: float) -> Optimizers:
        return [
            PSGD(
                model.named_parameters(),
                lr,
                form=form,
                criterion=criterion,
                momentum=0.0,
                clip=(ClipNorm(1.0),),
                fitting=Fitting(precond_lr=precond_lr, gate=gate),
            )
        ]

    return Candidate(name=name, build=build, lrs=NEWTON_LRS)
