"""The local coordinates in which a factor moves: one value per coordinate system.

A geometry turns the difference `D = T1 - T2` of the two curvature terms of one axis into a new
factor. Which one is used does not change the preconditioner that the fit converges to.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from psgd_optim.linalg import per_block, rotate_towards_psd


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How one step changes a factor.

    Args:
        name: The name in summaries and messages.
        move_matrix: Maps `q` (B, n, n), `d` (B, n, n), the step (B,) and random rows `start`
            (B, k, n) to the new `q`.
        move_diagonal: Maps `q` (B, n), `d` (B, n) and the step (B,) to the new `q`.
    """

    name: str
    move_matrix: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    move_diagonal: Callable[[Tensor, Tensor, Tensor], Tensor]


def _move_left_and_rotate(q: Tensor, d: Tensor, step: Tensor, start: Tensor) -> Tensor:
    """Take `Q <- (I - step D) Q`, then rotate; `step` (B,) below 1 / norm(D) keeps det(Q) > 0."""
    return rotate_towards_psd(q - per_block(step, q) * (d @ q), start)


def _scale(q: Tensor, d: Tensor, step: Tensor) -> Tensor:
    """Take `q <- (1 - step d) q`; `step` (B,) below 1 / max(d) keeps q > 0."""
    return q * (1 - per_block(step, d) * d)


Q0_5EQ1_5 = Geometry(name="Q0.5EQ1.5", move_matrix=_move_left_and_rotate, move_diagonal=_scale)
"""`dQ = Q^0.5 E Q^1.5`, with `Q` kept near the positive semi-definite cone by small rotations.

Inverse-free: an update is matrix products only. Source: design formulas 8.1."""
