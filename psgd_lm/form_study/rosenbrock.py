"""Steps to the minimum of Rosenbrock's function: small, exact, and hard for anything but Newton."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from psgd_optim import (
    PSGD,
    BlockTriangular,
    Dense,
    Diagonal,
    Fitting,
    Joint,
    Kron,
    LowRank,
    Newton,
    Permutation,
    SparseLU,
)
from psgd_optim.factors.matrix import TRIANGULAR
from psgd_optim.forms.base import Preconditioner
from psgd_optim.forms.closed_diagonal import ClosedDiagonal
from psgd_optim.geometry import EQ
from psgd_optim.step_size import MaxEntry, SpectralNorm

_EACH = SpectralNorm()
FORMS: dict[str, Preconditioner] = {
    "Dense, triangle, MaxEntry": Dense(geometry=EQ, factor=TRIANGULAR, normaliser=MaxEntry()),
    "Dense, QUAD": Dense(normaliser=_EACH),
    "Dense, QUAD, LipschitzEMA": Dense(),
    "Kron (one dense axis)": Kron(max_skew=math.inf, normaliser=_EACH),
    "LowRank(1)": LowRank(rank=1, normaliser=_EACH),
    "SparseLU(1)": SparseLU(rank=1, normaliser=_EACH),
    "arrow(1)": BlockTriangular(splits=(1,), normaliser=_EACH),
    "X-matrix": Permutation(normaliser=_EACH),
    "Diagonal": Diagonal(normaliser=_EACH),
    "ClosedDiagonal": ClosedDiagonal(),
}
"""With first-order normalisers, as in the papers, but for one."""
MOST = 1000
BELOW = 1e-10


def rosenbrock(x: Tensor) -> Tensor:
    """Return the function of `x` (2,), whose minimum is 0 at ones."""
    return 100 * (x[1] - x[0].square()).square() + (1 - x[0]).square()


def steps_to_minimum(form: Preconditioner, seed: int, most: int = MOST) -> int:
    """Return how many steps it takes from (-1, 1) until the function is below 1e-10.

    Args:
        form: Of the preconditioner, fitted to exact pairs with S1's settings: `lr` 0.5,
            `precond_lr` 0.2, a start at 0.1 times the identity.
        seed: Of the probes.
        most: Steps at which to give up.

    Returns:
        The number of steps; `most` if it was not enough.
    """
    x = torch.tensor([-1.0, 1.0], dtype=torch.float64, requires_grad=True)
    fitting = Fitting(precond_lr=0.2, gate=1.0, init_scale=0.1, seed=seed)
    optimizer = PSGD(
        [x], 0.5, form=Joint(form), criterion=Newton(damping=0.0), momentum=0.0, fitting=fitting
    )
    for step in range(most):
        if float(optimizer.step(lambda: rosenbrock(x))) < BELOW:
            return step
    return most


def measure(name: str, seeds: Sequence[int], most: int = MOST) -> list[int]:
    """Return the steps of every seed."""
    return [steps_to_minimum(FORMS[name], seed, most) for seed in seeds]
