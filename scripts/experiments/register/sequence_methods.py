"""The methods of the sequence experiments, with the settings that the papers give them."""

from collections.abc import Callable

import torch

from experiments.problem import Problem
from experiments.training import Method
from psgd_optim.axis_plan import KRONECKER, SCAN, AxisPlan
from psgd_optim.clipping import ClipNorm
from psgd_optim.criteria import Criterion, Newton
from psgd_optim.factors.matrix import TRIANGULAR
from psgd_optim.fitting import Fitting
from psgd_optim.forms.base import Preconditioner
from psgd_optim.forms.closed_diagonal import ClosedDiagonal
from psgd_optim.forms.dense import Dense
from psgd_optim.forms.kron import Kron
from psgd_optim.forms.low_rank import LowRank
from psgd_optim.forms.sparse_lu import SparseLU
from psgd_optim.geometry import EQ
from psgd_optim.optimizer import PSGD
from psgd_optim.scope import DirectSum, Joint, Scope, by_axes
from psgd_optim.step_size import MaxEntry, SpectralNorm

LARGEST_STEP = 1.0
"""Norm that preconditioned and plain gradients are clipped to, in S0 and S2 alike."""
Build = Callable[[Problem, float, int], torch.optim.Optimizer]


def psgd(
    form: Preconditioner | Scope, criterion: Criterion | None = None, *, update_first: bool = False
) -> Build:
    """Return what makes a PSGD from `Q = I` with steps of 0.01 for `Q` in every iteration.

    Args:
        form: The form of `Q`.
        criterion: What it is fitted to; `None` for exact Hessian-vector products, undamped.
        update_first: Whether a gradient is preconditioned with the `Q` that has seen it, as S1 and
            S2 do, and not with the last iteration's, as S0 does.
    """
    fitted_to = Newton(damping=0.0) if criterion is None else criterion

    def build(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
        return PSGD(
            problem.parameters,
            lr,
            form=form,
            criterion=fitted_to,
            momentum=0.0,
            clip=(ClipNorm(LARGEST_STEP),),
            fitting=Fitting(
                precond_lr=0.01, gate=1.0, init_scale=1.0, update_first=update_first, seed=seed
            ),
        )

    return build


def of_matrices(plan: AxisPlan) -> Scope:
    """Return the two factors of a plan for matrices `[W, b]`, with S0's step sizes.

    The readout is a matrix of one row, of which only the input side's factor is left: the other
    one would be a second number for the same scale.

    Args:
        plan: The factors of outputs and inputs.
    """
    inputs = AxisPlan(plan.axes[1:])
    rows, matrices = (Kron(plan=p, geometry=EQ, normaliser=MaxEntry()) for p in (inputs, plan))
    return DirectSum((by_axes(2, 2), matrices), otherwise=rows)


def low_rank(rank: int) -> Build:
    """Return what makes S2's low-rank approximation of all parameters together."""
    form = Joint(LowRank(rank=rank, normaliser=SpectralNorm()))
    return psgd(form, update_first=True)


def sgd(*rates: float) -> Method:
    """Return clipped SGD without momentum."""
    return Method(build=_sgd, rates=rates, max_norm=LARGEST_STEP)


def rmsprop(*rates: float) -> Method:
    """Return RMSProp."""
    return Method(build=_rmsprop, rates=rates)


def adam(*rates: float) -> Method:
    """Return Adam."""
    return Method(build=_adam, rates=rates)


# S0's ESGD: equilibration with its own averages, its clip and a fresh probe in every iteration.
EQUILIBRATION = psgd(ClosedDiagonal(beta=0.99, eps=1e-9))
SCALING_AND_NORMALISATION = psgd(of_matrices(SCAN))
KRON = psgd(of_matrices(KRONECKER))
SPARSE_LU = psgd(Joint(SparseLU(rank=10, normaliser=MaxEntry())))
DENSE = psgd(Joint(Dense(geometry=EQ, factor=TRIANGULAR, normaliser=MaxEntry())))


def _sgd(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
    return torch.optim.SGD(problem.parameters, lr)


def _rmsprop(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(problem.parameters, lr)


def _adam(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
    return torch.optim.Adam(problem.parameters, lr)
