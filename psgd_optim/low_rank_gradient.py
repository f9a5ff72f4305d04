"""The gradient of a low-rank factor: a matrix of rank two and any size, kept as four vectors."""

from typing import final

import torch
from torch import Tensor

from psgd_optim.group_gradient import GroupGradient
from psgd_optim.linalg import real_product, row_norms


@final
class LowRankGradient(GroupGradient):
    """The gradient `s1 x1^H - s2 x2^H`, never written out; the sizes are those of N x N matrices.

    Its two singular values follow from the 2 x 2 Gram matrices of `s` and of `x`: their squares
    have the sum `|s1|^2 |x1|^2 + |s2|^2 |x2|^2 - 2 Re (s1^H s2)(x2^H x1)`, and the product of both
    Gram determinants as product. Source: algorithms 4.13 for the sum; the rest is ours.
    """

    def __init__(self, s1: Tensor, x1: Tensor, s2: Tensor, x2: Tensor) -> None:
        """Keep the vectors, all (B, N)."""
        self._vectors = s1, x1, s2, x2

    def max_entry(self) -> Tensor:
        """Return the largest modulus of an entry; takes O(N^2) memory."""
        s1, x1, s2, x2 = self._vectors
        left, right = torch.stack((s1, s2), dim=2), torch.stack((x1, -x2), dim=2)
        return (left @ right.mH).abs().amax(dim=(1, 2))

    def spectral_norm(self) -> Tensor:
        """Return the largest singular value."""
        peak, squares, determinant = self._invariants()
        root = (squares.square() - 4 * determinant).clamp(min=0).sqrt()
        return peak * (0.5 * (squares + root)).sqrt()

    def frobenius_norm(self) -> Tensor:
        """Return the 2-norm of all entries."""
        peak, squares, _ = self._invariants()
        return peak * squares.sqrt()

    def curvature(self) -> Tensor:
        """Return `|s1| |x1| + |s2| |x2|`, a bound for both terms' sum and difference."""
        s1, x1, s2, x2 = (row_norms(x) for x in self._vectors)
        return s1 * x1 + s2 * x2

    def _invariants(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return a unit, and in it the singular values' sum of squares and squared product."""
        norms = [row_norms(x) for x in self._vectors]
        tiny = torch.finfo(norms[0].dtype).tiny
        s1, x1, s2, x2 = (
            x / norm.clamp(min=tiny)[:, None] for x, norm in zip(self._vectors, norms, strict=True)
        )
        first, second = norms[0] * norms[1], norms[2] * norms[3]
        peak = torch.maximum(first, second).clamp(min=tiny)
        first, second = first / peak, second / peak
        ss, xx = _inner(s1, s2), _inner(x2, x1)
        cross = first * second
        squares = first.square() + second.square() - 2 * cross * real_product(ss, xx.conj())
        # Where both terms cancel, what is left is rounding: no size is below that.
        squares = squares.clamp(min=4 * torch.finfo(squares.dtype).eps)
        gap = (1 - ss.abs().square()) * (1 - xx.abs().square())
        return peak, squares, cross.square() * gap


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """Return `x^H y` of every row, (B,)."""
    return (x.conj() * y).sum(dim=1)
