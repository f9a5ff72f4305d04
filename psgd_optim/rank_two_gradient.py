"""The gradient of a dense factor from one pair of vectors, and triangles of matrix gradients."""

from typing import final

import torch
from torch import Tensor

from psgd_optim.group_gradient import FactorGradient, MatrixGradient


@final
class RankTwoGradient(FactorGradient):
    """The gradient `a a^H - b b^H` of a dense factor from one pair of vectors, in O(n^2).

    The sizes are exact.
    """

    def __init__(self, a: Tensor, b: Tensor | None) -> None:
        """Keep the vectors.

        Args:
            a: (B, n).
            b: (B, n), or `None` for `a a^H - I`.
        """
        self._a, self._b = a, b

    def left(self, q: Tensor) -> Tensor:
        """Return `(a a^H - b b^H) Q`, (B, n, n)."""
        y = _outer(self._a, _row(self._a.conj(), q))
        return y - (q if self._b is None else _outer(self._b, _row(self._b.conj(), q)))

    def right(self, q: Tensor) -> Tensor:
        """Return `Q (a a^H - b b^H)`, (B, n, n)."""
        y = _outer(_column(q, self._a), self._a.conj())
        return y - (q if self._b is None else _outer(_column(q, self._b), self._b.conj()))

    def upper_left(self, q: Tensor) -> Tensor:
        """Return `triu(a a^H - b b^H) Q`, (B, n, n).

        Row `i` of `triu(a a^H) Q` is `a_i` times the sum of `conj(a_k) Q_k` over `k >= i`, a sum
        from the last row upwards. Source: algorithms 4.2 (derived there).
        """
        y = _upper_left(self._a, q)
        return y - (q if self._b is None else _upper_left(self._b, q))

    def upper_right(self, q: Tensor) -> Tensor:
        """Return `Q triu(a a^H - b b^H)`, (B, n, n); sums from the first column onwards."""
        y = _upper_right(q, self._a)
        return y - (q if self._b is None else _upper_right(q, self._b))

    def max_entry(self) -> Tensor:
        """Return the largest modulus of an entry; takes O(n^2) memory."""
        d = _outer(self._a, self._a.conj())
        if self._b is None:
            d = d - torch.eye(d.shape[-1], dtype=d.dtype, device=d.device)
        else:
            d = d - _outer(self._b, self._b.conj())
        return d.abs().amax(dim=(1, 2))

    def spectral_norm(self) -> Tensor:
        """Return the largest modulus of an eigenvalue. Source: algorithms 3.2 (derived there)."""
        aa, bb, ab = self._products()
        if self._b is None:  # eigenvalues |a|^2 - 1, and -1 if n > 1
            return (aa - 1).abs().clamp(min=1.0 if self._a.shape[-1] > 1 else 0.0)
        root = ((aa + bb).square() - 4 * ab.square()).clamp(min=0).sqrt()
        return 0.5 * ((aa - bb).abs() + root)

    def frobenius_norm(self) -> Tensor:
        """Return the 2-norm of all entries. Source: algorithms 3.2."""
        aa, bb, ab = self._products()
        if self._b is None:
            return ((aa - 1).square() + (self._a.shape[-1] - 1)).sqrt()
        return (aa.square() + bb.square() - 2 * ab.square()).clamp(min=0).sqrt()

    def curvature(self) -> Tensor:
        """Return `|a|^2 + |b|^2`, where `b b^H = I` counts 1."""
        aa, bb, _ = self._products()
        return aa + bb

    def _products(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return |a|^2, |b|^2 and |a^H b|, each (B,)."""
        aa = self._a.norm(dim=1).square()
        if self._b is None:
            one = torch.ones_like(aa)
            return aa, one, one
        ab = (self._a.conj() * self._b).sum(dim=1).abs()
        return aa, self._b.norm(dim=1).square(), ab


@final
class UpperGradient(FactorGradient):
    """The upper triangle of another gradient, for triangular factors.

    The sizes are those of the whole Hermitian gradient: its triangle has the same largest entry
    and a smaller Frobenius norm, and its norm is at least every diagonal entry, so that a step
    divided by any of them keeps the diagonal of `Q` positive.
    """

    def __init__(self, whole: MatrixGradient | RankTwoGradient) -> None:
        """Keep the whole gradient."""
        self._whole = whole

    def left(self, q: Tensor) -> Tensor:
        """Return `triu(E) Q`, (B, n, n)."""
        return self._whole.upper_left(q)

    def right(self, q: Tensor) -> Tensor:
        """Return `Q triu(E)`, (B, n, n)."""
        return self._whole.upper_right(q)

    def max_entry(self) -> Tensor:
        """Return the largest modulus of an entry."""
        return self._whole.max_entry()

    def spectral_norm(self) -> Tensor:
        """Return the norm of the whole gradient."""
        return self._whole.spectral_norm()

    def frobenius_norm(self) -> Tensor:
        """Return the Frobenius norm of the whole gradient."""
        return self._whole.frobenius_norm()

    def curvature(self) -> Tensor:
        """Return the bound for the whole gradient."""
        return self._whole.curvature()


def _outer(x: Tensor, y: Tensor) -> Tensor:
    """Return `x y^T`, (B, n, n)."""
    return x.unsqueeze(2) * y.unsqueeze(1)


def _row(x: Tensor, q: Tensor) -> Tensor:
    """Return `x^T Q`, (B, n)."""
    return (x.unsqueeze(1) @ q).squeeze(1)


def _column(q: Tensor, x: Tensor) -> Tensor:
    """Return `Q x`, (B, n)."""
    return (q @ x.unsqueeze(2)).squeeze(2)


def _upper_left(x: Tensor, q: Tensor) -> Tensor:
    """Return `triu(x x^H) Q`, (B, n, n)."""
    weighted = x.conj().unsqueeze(2) * q
    sums = weighted.flip(1).cumsum(dim=1).flip(1)  # over k >= i
    return x.unsqueeze(2) * sums


def _upper_right(q: Tensor, x: Tensor) -> Tensor:
    """Return `Q triu(x x^H)`, (B, n, n)."""
    sums = (q * x.unsqueeze(1)).cumsum(dim=2)  # over k <= j
    return sums * x.conj().unsqueeze(1)
