"""Optimizers by name: one form and one criterion each, ready to use.

Every function returns a `PSGD` and shares its arguments: `params` as for `PSGD`, `lr`,
`precond_lr` (the step size of `Q`), `init_scale` (`Q` starts as that times the identity; `None`
takes the scale of the first sample), `seed` and `momentum`.

Newton-type optimizers step with a closure that returns the loss; their `lr` is relative to a full
Newton step. Whitening ones step after `backward()`, with the `lr` of Adam. Forms of vectors see
all parameters as one vector, forms of matrices see each parameter by itself. For anything else,
build the `PSGD` yourself: these functions are also examples of how.
"""

import math

from torch.optim.optimizer import ParamsT

from psgd_optim.axis_plan import SCAN, SCAW, Plan
from psgd_optim.criteria import MomentumWhitening, Newton
from psgd_optim.factors.matrix import TRIANGULAR
from psgd_optim.fitting import Fitting
from psgd_optim.forms.base import Preconditioner
from psgd_optim.forms.dense import Dense
from psgd_optim.forms.diagonal import Diagonal
from psgd_optim.forms.kron import Kron
from psgd_optim.forms.low_rank import LowRank
from psgd_optim.forms.permutation import Permutation
from psgd_optim.forms.sparse_lu import SparseLU
from psgd_optim.geometry import EQ
from psgd_optim.optimizer import PSGD
from psgd_optim.permutation_groups import BUTTERFLY, X_MATRIX
from psgd_optim.schedules import Anneal
from psgd_optim.scope import DirectSum, Joint, Scope, by_axes
from psgd_optim.step_size import MaxEntry, SpectralNorm
from psgd_optim.types import Rate

_FALLING = Anneal(0.7, 0.1, flat=0)


def kron_whitening(
    params: ParamsT,
    lr: float = 1e-3,
    precond_lr: Rate = _FALLING,
    init_scale: float | None = None,
    seed: int = 0,
    momentum: float = 0.9,
) -> PSGD:
    """Return the default optimizer: Kronecker factors that whiten the averaged gradient."""
    form = Kron()
    return _whitening(params, form, lr, precond_lr, init_scale, seed, momentum)


def diagonal_whitening(
    params: ParamsT,
    lr: float = 1e-3,
    precond_lr: Rate = _FALLING,
    init_scale: float | None = None,
    seed: int = 0,
    momentum: float = 0.9,
) -> PSGD:
    """Return a diagonal that whitens the averaged gradient: an Adam without square roots."""
    form = Diagonal()
    return _whitening(params, form, lr, precond_lr, init_scale, seed, momentum)


def xmat_whitening(
    params: ParamsT,
    lr: float = 1e-3,
    precond_lr: Rate = _FALLING,
    init_scale: float | None = None,
    seed: int = 0,
    momentum: float = 0.9,
) -> PSGD:
    """Return the X-matrix, two numbers per parameter, for all parameters together."""
    form = Joint(Permutation(group=X_MATRIX))
    return _whitening(params, form, lr, precond_lr, init_scale, seed, momentum)


def low_rank_whitening(
    params: ParamsT,
    lr: float = 1e-3,
    precond_lr: Rate = _FALLING,
    init_scale: float | None = None,
    seed: int = 0,
    momentum: float = 0.9,
    rank: int = 10,
) -> PSGD:
    """Return a diagonal plus a low-rank part for all parameters together."""
    form = Joint(LowRank(rank=rank))
    return _whitening(params, form, lr, precond_lr, init_scale, seed, momentum)


def kron_newton(
    params: ParamsT,
    lr: float = 0.1,
    precond_lr: Rate = 0.1,
    init_scale: float | None = None,
    seed: int = 0,
    momentum: float = 0.0,
) -> PSGD:
    """Return dense Kronecker factors for every axis, fitted to Hessian-vector pairs."""
    form = Kron(max_skew=math.inf)
    return _newton(params, form, lr, precond_lr, init_scale, seed, momentum)


def dense_newton(
    params: ParamsT,
    lr: float = 0.1,
    precond_lr: Rate = 0.1,
    init_scale: float | None = None,
    seed: int = 0,
    momentum: float = 0.0,
) -> PSGD:
    """Return a triangular `Q` for all parameters together; needs `N^2` memory.

    The settings of S1's experiments: geometry EQ, the step divided by the largest entry; neither
    damping nor clip, so that scaling the loss does not change the trajectory.
    """
    form = Joint(Dense(geometry=EQ, factor=TRIANGULAR, normaliser=MaxEntry()))
    fitting = Fitting(precond_lr=precond_lr, gate=1.0, init_scale=init_scale, seed=seed)
    criterion = Newton(damping=0.0)
    return PSGD(
        params, lr, form=form, criterion=criterion, momentum=momentum, clip=(), fitting=fitting
    )


def diagonal_newton(
    params: ParamsT,
    lr: float = 0.1,
    precond_lr: Rate = 0.1,
    init_scale: float | None = None,
    seed: int = 0,
    momentum: float = 0.0,
) -> PSGD:
    """Return a diagonal `Q`: an equilibration preconditioner by the group rule."""
    form = Diagonal()
    return _newton(params, form, lr, precond_lr, init_scale, seed, momentum)


def sparse_lu_newton(
    params: ParamsT,
    lr: float = 0.1,
    precond_lr: Rate = 0.1,
    init_scale: float | None = None,
    seed: int = 0,
    momentum: float = 0.0,
    rank: int = 10,
) -> PSGD:
    """Return `Q = L U`, sparse but for `rank` rows and columns, for all parameters together."""
    form = Joint(SparseLU(rank=rank))
    return _newton(params, form, lr, precond_lr, init_scale, seed, momentum)


def scan_newton(
    params: ParamsT,
    lr: float = 0.1,
    precond_lr: Rate = 0.1,
    init_scale: float | None = None,
    seed: int = 0,
    momentum: float = 0.0,
) -> PSGD:
    """Return scaling and normalisation for matrices `[W, b]`, a diagonal for other shapes."""
    form = _for_matrices(SCAN)
    return _newton(params, form, lr, precond_lr, init_scale, seed, momentum)


def scaw_newton(
    params: ParamsT,
    lr: float = 0.1,
    precond_lr: Rate = 0.1,
    init_scale: float | None = None,
    seed: int = 0,
    momentum: float = 0.0,
) -> PSGD:
    """Return scaling and whitening for matrices `[W, b]`, a diagonal for other shapes."""
    form = _for_matrices(SCAW)
    return _newton(params, form, lr, precond_lr, init_scale, seed, momentum)


def xmat_newton(
    params: ParamsT,
    lr: float = 0.1,
    precond_lr: Rate = 0.1,
    init_scale: float | None = None,
    seed: int = 0,
    momentum: float = 0.0,
) -> PSGD:
    """Return the X-matrix, two numbers per parameter, for all parameters together."""
    form = Joint(Permutation(group=X_MATRIX, normaliser=SpectralNorm()))
    return _newton(params, form, lr, precond_lr, init_scale, seed, momentum)


def butterfly_newton(
    params: ParamsT,
    lr: float = 0.1,
    precond_lr: Rate = 0.1,
    init_scale: float | None = None,
    seed: int = 0,
    momentum: float = 0.0,
) -> PSGD:
    """Return the butterfly of two halves for all parameters, an even number of them."""
    form = Joint(Permutation(group=BUTTERFLY, normaliser=SpectralNorm()))
    return _newton(params, form, lr, precond_lr, init_scale, seed, momentum)


def low_rank_newton(
    params: ParamsT,
    lr: float = 0.1,
    precond_lr: Rate = 0.1,
    init_scale: float | None = None,
    seed: int = 0,
    momentum: float = 0.0,
    rank: int = 10,
) -> PSGD:
    """Return a diagonal plus a low-rank part for all parameters together."""
    form = Joint(LowRank(rank=rank))
    return _newton(params, form, lr, precond_lr, init_scale, seed, momentum)


def _whitening(
    params: ParamsT,
    form: Preconditioner | Scope,
    lr: float,
    precond_lr: Rate,
    init_scale: float | None,
    seed: int,
    momentum: float,
) -> PSGD:
    fitting = Fitting(precond_lr=precond_lr, init_scale=init_scale, seed=seed)
    criterion = MomentumWhitening()
    return PSGD(params, lr, form=form, criterion=criterion, momentum=momentum, fitting=fitting)


def _newton(
    params: ParamsT,
    form: Preconditioner | Scope,
    lr: float,
    precond_lr: Rate,
    init_scale: float | None,
    seed: int,
    momentum: float,
) -> PSGD:
    fitting = Fitting(precond_lr=precond_lr, gate=1.0, init_scale=init_scale, seed=seed)
    return PSGD(params, lr, form=form, criterion=Newton(), momentum=momentum, fitting=fitting)


def _for_matrices(plan: Plan) -> Scope:
    """Return a plan of a matrix's two factors for matrices, and a diagonal for other shapes."""
    return DirectSum((by_axes(2, 2), Kron(plan=plan, geometry=EQ)), otherwise=Diagonal())
