"""The gradient of the fitting criterion on a group, from one sample: its products and its sizes.

`T1` comes from `h` and grows with `Q`, `T2` comes from `v` and falls with it; `Q` moves along their
difference, by a step that is divided by one of four sizes. Nothing here is larger than it must be:
rank-two and diagonal gradients are never written out as matrices.
"""

import abc
from typing import final

import torch
from torch import Tensor

from psgd_optim import linalg


class GroupGradient(abc.ABC):
    """The gradient `T1 - T2` of one factor, as the four sizes that a step may be divided by.

    Every size is (B,), or of the shape of the steps where each element has a step of its own.
    """

    @abc.abstractmethod
    def max_entry(self) -> Tensor:
        """Return the largest modulus of a stored entry of `T1 - T2`."""

    @abc.abstractmethod
    def spectral_norm(self) -> Tensor:
        """Return the spectral norm of `T1 - T2`, or a close bound of it."""

    @abc.abstractmethod
    def frobenius_norm(self) -> Tensor:
        """Return the Frobenius norm of `T1 - T2`."""

    @abc.abstractmethod
    def curvature(self) -> Tensor:
        """Return a bound of the spectral norm of `T1 + T2`, the criterion's curvature."""


class FactorGradient(GroupGradient):
    """The gradient of one factor `Q` that geometries can move: sizes and products.

    Both products return a new tensor in the layout in which `Q` is stored, a member of the factor's
    pattern.
    """

    @abc.abstractmethod
    def left(self, q: Tensor) -> Tensor:
        """Return `E Q` for `E = T1 - T2`, cut to the pattern of the group."""

    @abc.abstractmethod
    def right(self, q: Tensor) -> Tensor:
        """Return `Q E`."""

    def sandwich(self, q: Tensor, step: Tensor) -> Tensor:
        """Return `M Q M` with `M = I - step E`, for a Hermitian `Q`.

        Args:
            q: (B, ...).
            step: (B,).
        """
        factor = linalg.per_block(-step, q)
        q = self.left(q).mul_(factor).add_(q)
        q = self.right(q).mul_(factor).add_(q)
        # The Hermitian part takes away what rounding leaves; a diagonal is real.
        return q if q.ndim == 2 else linalg.hermitian_part(q)


@final
class VectorGradient(FactorGradient):
    """The gradient of a diagonal factor: `T1` and `T2` are real vectors.

    Moves on the right of a factor with more than a diagonal bring terms of either sign.
    """

    def __init__(self, t1: Tensor, t2: Tensor | float) -> None:
        """Keep the terms.

        Args:
            t1: (B, ...), real.
            t2: Like `t1`, or a number.
        """
        self.difference = t1 - t2
        self._sum = t1.abs() + (t2.abs() if isinstance(t2, Tensor) else t2)

    def left(self, q: Tensor) -> Tensor:
        """Return the element-wise product."""
        return self.difference * q

    def right(self, q: Tensor) -> Tensor:
        """Return the element-wise product; diagonals commute."""
        return self.difference * q

    def max_entry(self) -> Tensor:
        """Return the largest modulus."""
        return self.difference.abs().flatten(1).amax(dim=1)

    def spectral_norm(self) -> Tensor:
        """Return the largest modulus, the norm of a diagonal matrix."""
        return self.max_entry()

    def frobenius_norm(self) -> Tensor:
        """Return the 2-norm of the vector."""
        norm: Tensor = self.difference.flatten(1).norm(dim=1)
        return norm

    def curvature(self) -> Tensor:
        """Return the largest entry of the sum of moduli."""
        return self._sum.flatten(1).amax(dim=1)


class GramNorm:
    """The spectral norm of one Gram matrix, estimated when it is first asked for, and then kept.

    Both sides of a matrix have Gram matrices of one norm, so that they may share the estimate.
    """

    def __init__(self, gram: Tensor, start: Tensor) -> None:
        """Keep the matrices (B, n, n) and the random rows (B, k, n) of the estimate."""
        self._gram, self._start = gram, start
        self._value: Tensor | None = None

    def value(self) -> Tensor:
        """Return the norm, (B,)."""
        if self._value is None:
            peak = linalg.trace_peak(self._gram)
            self._value = linalg.spectral_norm_bound(self._gram, self._start, peak)
        return self._value


@final
class MatrixGradient(FactorGradient):
    """The gradient of a factor from Gram matrices of any rank.

    The norms of matrices are estimated from random rows, and never below the largest entry.
    """

    def __init__(
        self, t1: Tensor, t2: Tensor | float, start: Tensor, norm: GramNorm | None = None
    ) -> None:
        """Keep the terms.

        Args:
            t1: (B, n, n), Hermitian and positive semi-definite.
            t2: Like `t1`, or a number that stands for that multiple of `I`.
            start: (B, k, n), standard normal, what the norm estimates start from.
            norm: Of `t1`, or of a matrix with the same norm, if it is shared.
        """
        self._t1, self._t2, self._start = t1, t2, start
        self._norm = norm or GramNorm(t1, start)

    @property
    def difference(self) -> Tensor:
        """`T1 - T2`, (B, n, n)."""
        if isinstance(self._t2, Tensor):
            return self._t1 - self._t2
        difference = self._t1.clone()
        difference.diagonal(dim1=1, dim2=2).sub_(self._t2)
        return difference

    def left(self, q: Tensor) -> Tensor:
        """Return `(T1 - T2) Q`, (B, n, n)."""
        if isinstance(self._t2, Tensor):
            return self.difference @ q
        return (self._t1 @ q).sub_(q, alpha=self._t2)

    def right(self, q: Tensor) -> Tensor:
        """Return `Q (T1 - T2)`, (B, n, n)."""
        if isinstance(self._t2, Tensor):
            return q @ self.difference
        return (q @ self._t1).sub_(q, alpha=self._t2)

    def upper_left(self, q: Tensor) -> Tensor:
        """Return `triu(T1 - T2) Q`, (B, n, n)."""
        return self.difference.triu() @ q

    def upper_right(self, q: Tensor) -> Tensor:
        """Return `Q triu(T1 - T2)`, (B, n, n)."""
        return q @ self.difference.triu()

    def max_entry(self) -> Tensor:
        """Return the largest modulus of an entry."""
        return linalg.row_peaks(self.difference)

    def spectral_norm(self) -> Tensor:
        """Return the estimated norm, at least the largest entry, a bound that it must meet."""
        return linalg.spectral_norm_bound(self.difference, self._start)

    def frobenius_norm(self) -> Tensor:
        """Return the 2-norm of all entries."""
        norm: Tensor = self.difference.flatten(1).norm(dim=1)
        return norm

    def curvature(self) -> Tensor:
        """Return the estimated norm of `T1 + T2`; exact in `T2` when it is a multiple of `I`."""
        if isinstance(self._t2, Tensor):
            return GramNorm(self._t1 + self._t2, self._start).value()
        return self._norm.value() + self._t2


@final
class ThinGradient(FactorGradient):
    """The gradient `X X^H - t I` of a long axis, from columns that are fewer than its entries.

    `X X^H` is never formed: two products with `X` take its place, and its norm is that of the small
    Gram matrix `X^H X`.
    """

    def __init__(self, x: Tensor, t: float, norm: GramNorm, start: Tensor) -> None:
        """Keep the columns.

        Args:
            x: (B, n, m), m < n.
            t: The multiple of `I`.
            norm: Of `X^H X`.
            start: (B, k, n), standard normal, for the norm of the difference.
        """
        self._x, self._t, self._norm, self._start = x, t, norm, start

    def left(self, q: Tensor) -> Tensor:
        """Return `(X X^H - t I) Q`, (B, n, n)."""
        return (self._x @ (self._x.mH @ q)).sub_(q, alpha=self._t)

    def right(self, q: Tensor) -> Tensor:
        """Return `Q (X X^H - t I)`, (B, n, n)."""
        return ((q @ self._x) @ self._x.mH).sub_(q, alpha=self._t)

    def sandwich(self, q: Tensor, step: Tensor) -> Tensor:
        """Return `M Q M` with `M = I - step E`, exactly Hermitian if `Q` is.

        With `c = 1 + step t`, it is `c^2 Q + Z + Z^H` where `Z = X (step^2 / 2 X K - c step Y)^H`,
        `Y = Q X` and `K = X^H Y`: the cost of one product with `E`.
        """
        x, step = self._x, linalg.per_block(step, q)
        c = 1 + self._t * step
        y = q @ x
        w = torch.addcmul(y.mul(-c * step), x @ (x.mH @ y), 0.5 * step.square())
        z = x @ w.mH
        return (z + z.mH).addcmul_(c.square(), q)

    def max_entry(self) -> Tensor:
        """Return the largest modulus of an entry; takes O(n^2) memory."""
        return linalg.row_peaks(self._difference())

    def spectral_norm(self) -> Tensor:
        """Return the estimated norm, at least the largest entry."""
        return linalg.spectral_norm_bound(self._difference(), self._start)

    def frobenius_norm(self) -> Tensor:
        """Return the 2-norm of all entries; takes O(n^2) memory."""
        norm: Tensor = self._difference().flatten(1).norm(dim=1)
        return norm

    def curvature(self) -> Tensor:
        """Return the estimated norm of `X X^H`, and `t`."""
        return self._norm.value() + self._t

    def _difference(self) -> Tensor:
        difference = self._x @ self._x.mH
        difference.diagonal(dim1=1, dim2=2).sub_(self._t)
        return difference
