"""The local coordinates in which a factor moves: one value per coordinate system.

A geometry says where the two curvature terms of a sample are taken, and turns their difference into
a new factor through the products `E Q` and `Q E` alone, so that one formula serves every pattern.
Where `P` can be the minimiser of the criterion, every one of them converges to it. Where a product
over several axes cannot, EQ finds the best such `P`, and the others the one whose image `P h` has
the second moment of `v` along each axis; its criterion is 0.1 % above in a measured case.

They differ in how fast they come back from afar: after a stretch of exactly zero gradients, in
which P grows to 1 / damping, Q0.5EQ1.5 and QEP are back within some hundred updates, the others are
not (measured: 300 updates without a gradient, then 700 with one).
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from psgd_optim.group_gradient import FactorGradient
from psgd_optim.linalg import per_block, rotate_onto_psd_, rotate_towards_psd_


class Frame(enum.Enum):
    """Where the curvature terms of a sample are taken."""

    LEFT = enum.auto()
    """`T1` from `Q h`, `T2` from `Q^-H v`: needs `v` and a solve."""
    RIGHT = enum.auto()
    """`T1` from `P h`, `T2` from `v`: free of inverses."""
    BOTH = enum.auto()
    """The terms of `RIGHT` between `Q` and `Q^H`."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How one step changes a factor.

    Args:
        name: The name in summaries and messages.
        frame: Where the curvature terms are taken.
        step: Maps the factor `q` (B, ...), its gradient and the step (B,) to a new tensor.
        rotate: Turns a stepped matrix (B, n, n), in place, towards the Hermitian cone, with the
            help of random rows (B, k, n); `None` where the step needs none. Diagonals are there
            already.
        fits_p: Whether the stored factor is `P` itself.
    """

    name: str
    frame: Frame
    step: Callable[[Tensor, FactorGradient, Tensor], Tensor]
    rotate: Callable[[Tensor, Tensor], Tensor] | None = None
    fits_p: bool = False

    def __repr__(self) -> str:
        return self.name

    def move(
        self, q: Tensor, gradient: FactorGradient, step: Tensor, start: Tensor | None
    ) -> Tensor:
        """Return the factor after one step against the gradient.

        Args:
            q: (B, ...), the factor.
            gradient: The gradient in the terms of `frame`.
            step: (B,), the rate divided by the gradient's size.
            start: (B, k, n), standard normal, or `None` for a diagonal.

        Returns:
            The new factor; invertible where `step` is below 1 over the norm of the gradient.
        """
        q = self.step(q, gradient, step.to(q.real.dtype))
        return q if self.rotate is None or start is None else self.rotate(q, start)


def _left(q: Tensor, gradient: FactorGradient, step: Tensor) -> Tensor:
    """Take `Q <- (I - step E) Q`."""
    return gradient.left(q).mul_(per_block(-step, q)).add_(q)


def _right(q: Tensor, gradient: FactorGradient, step: Tensor) -> Tensor:
    """Take `Q <- Q (I - step E)`."""
    return gradient.right(q).mul_(per_block(-step, q)).add_(q)


def _sandwich(q: Tensor, gradient: FactorGradient, step: Tensor) -> Tensor:
    """Take `Q <- M Q M` with `M = I - step E`; keeps `Q` Hermitian and positive definite."""
    return gradient.sandwich(q, step)


def _half_sandwich(q: Tensor, gradient: FactorGradient, step: Tensor) -> Tensor:
    """Take `Q <- M Q M` with `M = I - step E / 2`, a whole step to first order."""
    return gradient.sandwich(q, 0.5 * step)


EQ = Geometry(name="EQ", frame=Frame.LEFT, step=_left)
"""`dQ = E Q`, the multiplication of a Lie group: the only one that keeps a group's pattern.

Invariant under a change of the parameters' coordinates by a member of the group; every update needs
a probe `v` and one solve. Source: S0, S1; design formulas 8.1."""

QEP = Geometry(name="QEP", frame=Frame.BOTH, step=_left)
"""`dQ = Q E P`. Source: design formulas 8.1."""

QEQ = Geometry(name="QEQ", frame=Frame.RIGHT, step=_right)
"""`dQ = Q E Q`. Source: design formulas 8.1."""

Q0_5EQ1_5 = Geometry(name="Q0.5EQ1.5", frame=Frame.RIGHT, step=_left, rotate=rotate_towards_psd_)
"""`dQ = Q^0.5 E Q^1.5`, with `Q` kept near the positive semi-definite cone by small rotations.

Inverse-free: an update is matrix products only. Source: design formulas 8.1."""

QUAD = Geometry(name="QUAD", frame=Frame.RIGHT, step=_half_sandwich)
"""`dQ = (D Q + Q D) / 2` to first order, with `Q` Hermitian and positive definite exactly.

Inverse-free, without rotations. Source: design formulas 8.1."""

QUAD4P = Geometry(name="QUAD4P", frame=Frame.RIGHT, step=_sandwich, fits_p=True)
"""As `QUAD`, with `P` in the place of `Q`: applying `P` is one product per axis.

`P` has the squared condition of `Q`, so it wants single precision. Source: design formulas 8.1."""

PRO4P = Geometry(name="PRO4P", frame=Frame.RIGHT, step=_left, rotate=rotate_onto_psd_, fits_p=True)
"""As `Q0_5EQ1_5`, with `P` in the place of `Q`, rotated further. Source: design formulas 8.1."""
