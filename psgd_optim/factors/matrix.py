"""The factors that are full or triangular matrices."""

import abc
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from psgd_optim import linalg
from psgd_optim.factors.base import Factor, SymmetricFactor
from psgd_optim.group_gradient import FactorGradient, MatrixGradient
from psgd_optim.rank_two_gradient import RankTwoGradient, UpperGradient


class MatrixFactor(Factor):
    """What full and triangular matrices share; `q` is (B, n, n)."""

    @abc.abstractmethod
    def rank_two(self, a: Tensor, b: Tensor | None) -> FactorGradient:
        """Return the gradient of `a a^H - b b^H`, vectors (B, n); `None` is `b b^H = I`."""

    def init(self, n: int, scale: Tensor) -> Tensor:
        """Return `scale * I`, (B, n, n)."""
        eye = torch.eye(n, dtype=scale.dtype, device=scale.device)
        return scale[:, None, None] * eye

    def matrix(self, q: Tensor) -> Tensor:
        """Return `q` itself."""
        return q

    def multiply(self, q: Tensor, x: Tensor, axis: int) -> Tensor:
        """Return `x ×_axis Q`."""
        return linalg.mode_product(q, x, axis)

    def multiply_adjoint(self, q: Tensor, x: Tensor, axis: int) -> Tensor:
        """Return `x ×_axis Q^H`."""
        return linalg.mode_product(q.mH, x, axis)

    def square(self, q: Tensor, elements: int, uses: float) -> Tensor | None:
        """Return `Q^H Q` where it saves more than its n^3 products cost."""
        return q.mH @ q if q.shape[-1] ** 2 <= uses * elements else None

    def gram(self, x: Tensor, axis: int) -> Tensor:
        """Return the Gram matrix, (B, n, n)."""
        return linalg.mode_gram(x, axis)

    def start(self, q: Tensor, rows: int, generator: torch.Generator) -> Tensor | None:
        """Draw `rows` standard normal rows, (B, rows, n)."""
        real = torch.promote_types(q.real.dtype, torch.float32)
        shape = (q.shape[0], rows, q.shape[-1])
        return torch.randn(shape, generator=generator, dtype=real, device=q.device)

    def _matrix_gradient(
        self, t1: Tensor, t2: Tensor | float, start: Tensor | None
    ) -> MatrixGradient:
        if start is None:
            raise ValueError("A dense factor's update needs the random rows that draw() makes.")
        return MatrixGradient(t1, t2, start)


@final
@dataclass(frozen=True, repr=False)
class General(MatrixFactor, SymmetricFactor):
    """A full matrix, (B, n, n); the group GL(n) under EQ."""

    name: ClassVar[str] = "dense"

    def numel(self, n: int) -> int:
        """Return n^2."""
        return n * n

    def solve_adjoint(self, q: Tensor, x: Tensor, axis: int) -> Tensor:
        """Return `x ×_axis Q^-H` by elimination."""
        columns = linalg.unfold(x, axis)
        solved = torch.linalg.solve_ex(q.mH, columns).result  # no error, no look at a value
        return linalg.fold(solved, x.shape, axis)

    def gradient(self, t1: Tensor, t2: Tensor | float, start: Tensor | None) -> FactorGradient:
        """Return the matrix gradient."""
        return self._matrix_gradient(t1, t2, start)

    def rank_two(self, a: Tensor, b: Tensor | None) -> FactorGradient:
        """Return the gradient of `a a^H - b b^H`."""
        return RankTwoGradient(a, b)

    def congruence(self, q: Tensor, t: Tensor | float) -> Tensor:
        """Return `Q T Q^H`, (B, n, n)."""
        return q @ t @ q.mH if isinstance(t, Tensor) else t * (q @ q.mH)

    def hermitian(self, q: Tensor) -> Tensor:
        """Return `(Q + Q^H) / 2`."""
        return linalg.hermitian_part(q)

    def root(self, q: Tensor) -> Tensor:
        """Return the Hermitian root, (B, n, n)."""
        return linalg.hermitian_root(q)


@final
@dataclass(frozen=True, repr=False)
class Triangular(MatrixFactor):
    """An upper triangular matrix with a positive diagonal, (B, n, n) with zeros below.

    On this group `Q` is unique for a given `P`, its Cholesky factor. Source: S1 (18).
    """

    name: ClassVar[str] = "triangular"

    def numel(self, n: int) -> int:
        """Return n (n + 1) / 2; the zeros that are stored below the diagonal do not count."""
        return n * (n + 1) // 2

    def solve_adjoint(self, q: Tensor, x: Tensor, axis: int) -> Tensor:
        """Return `x ×_axis Q^-H` by forward substitution."""
        columns = linalg.unfold(x, axis)
        solved = torch.linalg.solve_triangular(q.mH, columns, upper=False)
        return linalg.fold(solved, x.shape, axis)

    def gradient(self, t1: Tensor, t2: Tensor | float, start: Tensor | None) -> FactorGradient:
        """Return the upper triangle of the matrix gradient."""
        return UpperGradient(self._matrix_gradient(t1, t2, start))

    def rank_two(self, a: Tensor, b: Tensor | None) -> FactorGradient:
        """Return the gradient of `triu(a a^H - b b^H)`."""
        return UpperGradient(RankTwoGradient(a, b))


GENERAL = General()
"""Any invertible matrix."""

TRIANGULAR = Triangular()
"""Whitening by an upper triangle; for EQ alone."""
