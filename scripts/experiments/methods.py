"""Optimizers as the papers set them up, for the methods of a race."""

import math
from collections.abc import Callable

import torch

from experiments.problem import Problem
from experiments.problems.images import Classification
from psgd_optim import (
    PSGD,
    Dense,
    Fitting,
    Joint,
    Kron,
    LowRank,
    Newton,
    Permutation,
    SparseLU,
)
from psgd_optim.axis_plan import KRONECKER, SCAN
from psgd_optim.clipping import Clip, ClipJointRMS
from psgd_optim.criteria import Criterion
from psgd_optim.factors.matrix import TRIANGULAR
from psgd_optim.forms.base import Preconditioner
from psgd_optim.forms.closed_diagonal import ClosedDiagonal
from psgd_optim.geometry import EQ
from psgd_optim.permutation_groups import X_MATRIX
from psgd_optim.scope import Scope
from psgd_optim.step_size import MaxEntry, SpectralNorm
from psgd_optim.types import InputError, Rate, Schedule

Build = Callable[[Problem, float, int], torch.optim.Optimizer]

# S0 and S1: triangular factors, the step of Q divided by the gradient's largest entry.
KRON = Kron(plan=KRONECKER, geometry=EQ, normaliser=MaxEntry())
SCALING = Kron(plan=SCAN, geometry=EQ, normaliser=MaxEntry())
EQUILIBRATION = ClosedDiagonal(eps=1e-9)
SPARSE_LU = Joint(SparseLU(rank=10))
DENSE = Joint(Dense(geometry=EQ, factor=TRIANGULAR, normaliser=MaxEntry()))
# S2: all parameters as one vector. The spectral norm is the largest entry of the diagonal's
# gradient, and of the low-rank part's at most what the paper divides by.
X_MATRICES = Joint(Permutation(group=X_MATRIX, normaliser=SpectralNorm()))
TRUST_REGION = (ClipJointRMS(0.1),)
EXACT = Newton(damping=0.0)
"""Hessian-vector products as they are."""


def low_rank(rank: int) -> Scope:
    """Return S2's low-rank form of a rank, for all parameters together."""
    return Joint(LowRank(rank=rank, normaliser=SpectralNorm()))


def psgd(
    form: Preconditioner | Scope,
    precond_lr: Rate,
    criterion: Criterion = EXACT,
    *,
    clip: tuple[Clip, ...] = (),
    init_scale: float | None = 1.0,
    momentum: float = 0.0,
    gate: Rate = 1.0,
    update_first: bool = True,
) -> Build:
    """Return what makes a PSGD.

    Args:
        form: The form.
        precond_lr: Step size of Q.
        criterion: What it is fitted to.
        clip: Limits of the step.
        init_scale: Q starts as that times the identity; `None` takes the first sample's scale.
        momentum: Decay of the gradient's average.
        gate: Probability that a step fits Q.
        update_first: Whether a gradient is preconditioned with the Q that has seen it, as S1 and
            S2 do, and not with the last iteration's, as S0 does.
    """

    def build(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
        fitting = Fitting(
            precond_lr=precond_lr,
            gate=gate,
            init_scale=init_scale,
            update_first=update_first,
            seed=seed,
        )
        return PSGD(
            problem.parameters,
            lr,
            form=form,
            criterion=criterion,
            momentum=momentum,
            clip=clip,
            fitting=fitting,
        )

    return build


def penalised(build: Build, strength: float) -> Build:
    """Return what makes an optimizer of a classification whose loss has an L2 penalty.

    Curvature sees the penalty then, as it does not see the decay of an optimizer.

    Args:
        build: Makes the optimizer.
        strength: Of the penalty.

    Raises:
        InputError: By what is returned, if a problem takes no penalty.
    """

    def build_penalised(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
        if not isinstance(problem, Classification):
            raise InputError(f"Got a penalty for {problem}, which takes none; leave it away.")
        problem.penalty = strength
        return build(problem, lr, seed)

    return build_penalised


def sgd(momentum: float = 0.0, weight_decay: float = 0.0) -> Build:
    """Return what makes gradient descent, with momentum as a sum of past gradients.

    Where a source averages them, a step size of mu there is (1 - momentum) mu here. Torch's
    dampening would let the first gradient into the average with a weight of 1.

    Args:
        momentum: Decay of the sum.
        weight_decay: Strength of an L2 penalty.
    """

    def build(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
        parameters = problem.parameters
        return torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay)

    return build


def adam(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
    """Return Adam with the defaults of its paper."""
    return torch.optim.Adam(problem.parameters, lr)


def rmsprop(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
    """Return RMSProp with torch's defaults; S0's average grows longer with the steps."""
    return torch.optim.RMSprop(problem.parameters, lr)


def annealed(start: float, end: float, steps: int) -> Schedule:
    """Return an exponential from one value down to another in a number of steps."""
    return lambda step: start * (end / start) ** min(step / steps, 1.0)


def cosine(progress: float) -> float:
    """Return half a period of a cosine, from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * progress))
