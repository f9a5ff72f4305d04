"""The normalisation factor: shifts and scales features, for an axis whose last entry is a bias."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from psgd_optim import linalg
from psgd_optim.factors.base import Factor
from psgd_optim.group_gradient import FactorGradient


@final
class NormalisationGradient(FactorGradient):
    """The gradient `diag(e) + c e_n^T` of a normalisation factor, stored as the factor is."""

    def __init__(self, t1: Tensor, t2: Tensor) -> None:
        """Keep the terms.

        Args:
            t1: (B, 2, n), diagonal and last column of a Gram matrix; 0 in the corner of the latter.
            t2: Like `t1`.
        """
        self.difference = t1 - t2
        self._sum = (t1[:, 0] + t2[:, 0]).real

    def left(self, q: Tensor) -> Tensor:
        """Return the product with `Q`, a member of the group again."""
        return _product(self.difference, q)

    def right(self, q: Tensor) -> Tensor:
        """Return the product after `Q`."""
        return _product(q, self.difference)

    def max_entry(self) -> Tensor:
        """Return the largest modulus of an entry of the pattern."""
        return self.difference.abs().amax(dim=(1, 2))

    def spectral_norm(self) -> Tensor:
        """Return a bound of the pattern's norm, at most twice that norm."""
        diagonal, column = self.difference[:, 0], self.difference[:, 1]
        bound = diagonal.abs().amax(dim=1) + column.norm(dim=1)
        return torch.minimum(bound, self.frobenius_norm())

    def frobenius_norm(self) -> Tensor:
        """Return the 2-norm of the entries of the pattern."""
        norm: Tensor = self.difference.flatten(1).norm(dim=1)
        return norm

    def curvature(self) -> Tensor:
        """Bound the norms of the 2 x 2 parts of `T1 + T2` that a row of the pattern sees."""
        rest = self._sum[:, :-1]
        # The trace of each part; an axis of size 1 has no such part, only its corner.
        largest = rest.amax(dim=1) if rest.shape[1] else 0.0
        return self._sum[:, -1] + largest


@final
@dataclass(frozen=True, repr=False)
class Normalisation(Factor):
    """`Q = diag(d) + m e_n^T` with `m_n = 0`, stored as (B, 2, n), `d` above `m`.

    Acts on features whose last one is the constant 1: `x -> (x - mean) / deviation` is a member,
    with `d = 1 / deviation` and `m = -mean / deviation`. Source: S1 5.3; algorithms 4.7.
    """

    name: ClassVar[str] = "normalisation"

    def numel(self, n: int) -> int:
        """Return 2 n - 1: a diagonal and the rest of the last column."""
        return 2 * n - 1

    def init(self, n: int, scale: Tensor) -> Tensor:
        """Return `scale` repeated above zeros, (B, 2, n)."""
        d = scale[:, None].repeat(1, n)
        return torch.stack((d, torch.zeros_like(d)), dim=1)

    def matrix(self, q: Tensor) -> Tensor:
        """Return the matrix, (B, n, n)."""
        last = torch.zeros_like(q[:, 1])
        last[:, -1] = 1
        return torch.diag_embed(q[:, 0]) + q[:, 1].unsqueeze(2) * last.unsqueeze(1)

    def multiply(self, q: Tensor, x: Tensor, axis: int) -> Tensor:
        """Return `d x + m x_n` along an axis."""
        last = _last(x, axis).expand(x.shape)
        return linalg.mode_scale(q[:, 0], x, axis) + linalg.mode_scale(q[:, 1], last, axis)

    def multiply_adjoint(self, q: Tensor, x: Tensor, axis: int) -> Tensor:
        """Return `conj(d) x` along an axis, with `m^H x` added to the last entry."""
        y = linalg.mode_scale(q[:, 0].conj(), x, axis)
        return _add_to_last(y, _inner(q[:, 1], x, axis), axis)

    def solve_adjoint(self, q: Tensor, x: Tensor, axis: int) -> Tensor:
        """Return `x ×_axis Q^-H`. Source: algorithms 4.7."""
        y = linalg.mode_scale(q[:, 0].conj().reciprocal(), x, axis)
        corner = q[:, :1, -1].conj()  # (B, 1)
        return _add_to_last(y, -_inner(q[:, 1], y, axis) / linalg.per_block(corner, y), axis)

    def gram(self, x: Tensor, axis: int) -> Tensor:
        """Return the diagonal and the last column of the Gram matrix, (B, 2, n)."""
        columns = linalg.unfold(x, axis)  # (B, n, N / n)
        diagonal = linalg.abs_square(columns).sum(dim=2).to(x.dtype)
        column = (columns @ columns[:, -1:].mH).squeeze(2)
        column[:, -1] = 0  # the corner is in the diagonal
        return torch.stack((diagonal, column), dim=1)

    def gradient(self, t1: Tensor, t2: Tensor | float, start: Tensor | None) -> FactorGradient:
        """Return the gradient in the factor's pattern."""
        if not isinstance(t2, Tensor):
            raise TypeError("A normalisation factor needs the terms of both h and v.")
        return NormalisationGradient(t1, t2)


NORMALISATION = Normalisation()
"""Scaling and shifting; for EQ alone."""


def _product(x: Tensor, y: Tensor) -> Tensor:
    """Return `X Y` of two members of the pattern, each (B, 2, n)."""
    d = x[:, 0] * y[:, 0]
    m = x[:, 0] * y[:, 1] + x[:, 1] * y[:, 0, -1:]
    return torch.stack((d, m), dim=1)


def _last(x: Tensor, axis: int) -> Tensor:
    """Return the last slice along an axis, which keeps size 1."""
    return x.narrow(axis + 1, x.shape[axis + 1] - 1, 1)


def _inner(m: Tensor, x: Tensor, axis: int) -> Tensor:
    """Return `m^H x` along an axis, which keeps size 1."""
    return linalg.mode_scale(m.conj(), x, axis).sum(dim=axis + 1, keepdim=True)


def _add_to_last(x: Tensor, y: Tensor, axis: int) -> Tensor:
    """Return `x` with `y` added to its last slice along an axis."""
    rest = x.narrow(axis + 1, 0, x.shape[axis + 1] - 1)
    return torch.cat((rest, _last(x, axis) + y), dim=axis + 1)
