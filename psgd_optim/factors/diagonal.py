"""The diagonal factor: scaling of one axis, the cheapest pattern and what long axes get."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from psgd_optim import linalg
from psgd_optim.factors.base import SymmetricFactor
from psgd_optim.group_gradient import FactorGradient, VectorGradient


@final
@dataclass(frozen=True, repr=False)
class Diagonal(SymmetricFactor):
    """The positive diagonal of a matrix, (B, n)."""

    name: ClassVar[str] = "diagonal"

    def numel(self, n: int) -> int:
        """Return n."""
        return n

    def init(self, n: int, scale: Tensor) -> Tensor:
        """Return `scale` repeated, (B, n)."""
        return scale[:, None].repeat(1, n)

    def matrix(self, q: Tensor) -> Tensor:
        """Return the diagonal matrix, (B, n, n)."""
        return torch.diag_embed(q)

    def multiply(self, q: Tensor, x: Tensor, axis: int) -> Tensor:
        """Return `x` scaled along an axis by q."""
        return linalg.mode_scale(q, x, axis)

    def multiply_adjoint(self, q: Tensor, x: Tensor, axis: int) -> Tensor:
        """Return `x` scaled along an axis by conj(q)."""
        return linalg.mode_scale(q.conj(), x, axis)

    def solve_adjoint(self, q: Tensor, x: Tensor, axis: int) -> Tensor:
        """Return `x` divided along an axis by conj(q)."""
        return linalg.mode_scale(q.conj().reciprocal(), x, axis)

    def square(self, q: Tensor, elements: int, uses: float) -> Tensor | None:
        """Return |q|^2."""
        return linalg.abs_square(q)

    def gram(self, x: Tensor, axis: int) -> Tensor:
        """Return the diagonal of the Gram matrix, (B, n), real."""
        return linalg.mode_gram_diagonal(x, axis)

    def gradient(self, t1: Tensor, t2: Tensor | float, start: Tensor | None) -> FactorGradient:
        """Return the vector gradient."""
        return VectorGradient(t1, t2)

    def congruence(self, q: Tensor, t: Tensor | float) -> Tensor:
        """Return `|q|^2 t`, real."""
        return linalg.abs_square(q) * t

    def hermitian(self, q: Tensor) -> Tensor:
        """Return `q` itself, which is real."""
        return q

    def root(self, q: Tensor) -> Tensor:
        """Return the diagonal matrix of the square roots, (B, n, n)."""
        return torch.diag_embed(q.sqrt())


DIAGONAL = Diagonal()
"""Scaling."""
