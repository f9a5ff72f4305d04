"""Steps to the minimum of Rosenbrock's function: small, exact, and hard for anything but Newton."""

from collections.abc import Sequence

import torch
from torch import Tensor

from psgd_optim import (
    PSGD,
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
from psgd_optim.permutation_groups import BUTTERFLY
from psgd_optim.step_size import MaxEntry

FORMS: dict[str, Preconditioner] = {
    "Dense, triangle": Dense(geometry=EQ, factor=TRIANGULAR, normaliser=MaxEntry()),
    "Dense, QUAD": Dense(),
    "Kron (one dense axis)": Kron(),
    "LowRank(2)": LowRank(rank=2),
    "SparseLU(2)": SparseLU(rank=2),
    "X-matrix": Permutation(),
    "butterfly": Permutation(group=BUTTERFLY),
    "Diagonal": Diagonal(),
    "ClosedDiagonal": ClosedDiagonal(),
}
SIZES = (2, 10)
MOST = 2000
BELOW = 1e-10


def rosenbrock(x: Tensor) -> Tensor:
    """Return the chained function of `x` (n,), whose minimum is 0 at ones."""
    return (100 * (x[1:] - x[:-1].square()).square() + (1 - x[:-1]).square()).sum()


def steps_to_minimum(form: Preconditioner, size: int, seed: int, most: int = MOST) -> int:
    """Return how many steps it takes until the function is below 1e-10.

    Args:
        form: Of the preconditioner, fitted to exact pairs with S1's settings: `lr` 0.5,
            `precond_lr` 0.2, a start at 0.1 times the identity.
        size: Number of variables, which start at -1, 1, -1, ...
        seed: Of the probes.
        most: Steps at which to give up.

    Returns:
        The number of steps; `most` if it was not enough.
    """
    x = torch.ones(size, dtype=torch.float64)
    x[::2] = -1
    x.requires_grad_()
    fitting = Fitting(precond_lr=0.2, gate=1.0, init_scale=0.1, seed=seed)
    optimizer = PSGD(
        [x], 0.5, form=Joint(form), criterion=Newton(damping=0.0), momentum=0.0, fitting=fitting
    )
    for step in range(most):
        if float(optimizer.step(lambda: rosenbrock(x))) < BELOW:
            return step
    return most


def measure(name: str, seeds: Sequence[int], most: int = MOST) -> dict[str, list[int]]:
    """Return the steps of every seed by the number of variables."""
    return {
        str(size): [steps_to_minimum(FORMS[name], size, seed, most) for seed in seeds]
        for size in SIZES
    }
