"""Arrow matrices: lower triangular, and diagonal after the first `r` columns; a group.

One is kept as `columns` (B, N, r), zero above the diagonal, and `tail` (B, N - r), the rest of the
diagonal, real. Vectors are (B, N); everything is O(r N).
"""

from typing import NamedTuple, final

import torch
from torch import Tensor

from psgd_optim.group_gradient import GroupGradient
from psgd_optim.linalg import matvec, per_block, real_product, row_norms


@final
class ArrowGradient(GroupGradient):
    """`s1 t1^H - s2 t2^H`, cut to the entries of an arrow matrix with a real diagonal.

    Every size is (B, 2), of the columns and of the tail. The paper has one step for both, divided
    by the largest entry, and the sizes of first order are those of the whole. The bounds of the
    curvature are separate: that of the columns grows with `N`, while the tail needs only its
    largest entry; separate positive steps still descend, as the parts are orthogonal.

    Source: algorithms 4.4: `L` moves on the left along `a a^H - b b^H`, `U` on the right along
    `p h^H - v w^H`, which is a move of `U^H` on the left along the adjoint. The bounds are ours:
    an arrow matrix `[C | D]` of columns and tail has `|[C | D]|^2 <= |C|_F^2 + max|D|^2`.
    """

    def __init__(self, s1: Tensor, t1: Tensor, s2: Tensor, t2: Tensor, rank: int) -> None:
        """Keep the vectors and the entries.

        Args:
            s1: (B, N).
            t1: (B, N).
            s2: (B, N).
            t2: (B, N).
            rank: The number of columns.
        """
        self._s1, self._t1 = s1, t1[:, :rank]
        self._s2, self._t2 = s2, t2[:, :rank]
        left = torch.stack((s1, s2), dim=2)  # (B, N, 2)
        right = torch.stack((self._t1, -self._t2), dim=2)  # (B, r, 2)
        self.columns = (left @ right.mH).tril()  # (B, N, r)
        if self.columns.is_complex():
            self.columns.diagonal(dim1=1, dim2=2).imag.zero_()
        self._terms = real_product(s1, t1)[:, rank:], real_product(s2, t2)[:, rank:]
        self.tail = self._terms[0] - self._terms[1]  # (B, N - r)

    def max_entry(self) -> Tensor:
        """Return the largest modulus of a stored entry."""
        return _twice(torch.maximum(largest(self.columns.flatten(1)), largest(self.tail)))

    def spectral_norm(self) -> Tensor:
        """Return a bound: at least the norm, at most `sqrt(r + 1)` times it."""
        return _twice(row_norms(self.columns).hypot(largest(self.tail)))

    def frobenius_norm(self) -> Tensor:
        """Return the 2-norm of all entries."""
        return _twice(row_norms(self.columns).hypot(row_norms(self.tail)))

    def curvature(self) -> Tensor:
        """Return bounds of the norms of both terms' sum, and of their difference, in O(N).

        Cutting an outer product lowers its Frobenius norm, so columns have at most
        `|s1| |t1| + |s2| |t2|`, with the first `r` entries of each `t`.
        """
        columns = row_norms(self._s1) * row_norms(self._t1)
        columns = columns + row_norms(self._s2) * row_norms(self._t2)
        tail = largest(self._terms[0].abs() + self._terms[1].abs())
        return torch.stack((columns, tail), dim=1)


class Arrow(NamedTuple):
    """A stack of arrow matrices `A`."""

    columns: Tensor
    tail: Tensor

    def times(self, x: Tensor) -> Tensor:
        """Return `A x`, (B, N)."""
        head, rest = self._split(x)
        y = matvec(self.columns, head)
        return torch.cat((y[:, : head.shape[1]], y[:, head.shape[1] :] + self.tail * rest), dim=1)

    def adjoint_times(self, x: Tensor) -> Tensor:
        """Return `A^H x`, (B, N)."""
        return torch.cat((matvec(self.columns.mH, x), self.tail * self._split(x)[1]), dim=1)

    def solve(self, x: Tensor) -> Tensor:
        """Return `A^-1 x`, (B, N)."""
        head, rest = self._split(x)
        corner, edge = self._split(self.columns)
        y = torch.linalg.solve_triangular(corner, head[..., None], upper=False)[..., 0]
        return torch.cat((y, (rest - matvec(edge, y)) / self.tail), dim=1)

    def adjoint_solve(self, x: Tensor) -> Tensor:
        """Return `A^-H x`, (B, N)."""
        head, rest = self._split(x)
        corner, edge = self._split(self.columns)
        y = rest / self.tail
        head = head - matvec(edge.mH, y)
        head = torch.linalg.solve_triangular(corner.mH, head[..., None], upper=True)[..., 0]
        return torch.cat((head, y), dim=1)

    def moved(self, gradient: ArrowGradient, steps: Tensor) -> "Arrow":
        """Return `(I - E) A`, also an arrow matrix.

        Args:
            gradient: What `E` is, but for the steps.
            steps: (B, 2), what multiplies its columns and its tail.
        """
        corner, edge = self._split(self.columns)
        tail = steps[:, 1:] * gradient.tail
        move = gradient.columns @ corner  # (B, N, r)
        move = per_block(steps[:, 0], move) * move
        move[:, corner.shape[1] :] += tail[..., None] * edge
        return Arrow(self.columns - move, self.tail * (1 - tail))

    def dense(self) -> Tensor:
        """Return the matrices, (B, N, N)."""
        n, r = self.columns.shape[1:]
        tail = torch.diag_embed(self.tail.to(self.columns.dtype), offset=-r)[:, :n, : n - r]
        return torch.cat((self.columns, tail), dim=2)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first `r` rows and the others."""
        r = self.columns.shape[-1]
        return x[:, :r], x[:, r:]


def _twice(size: Tensor) -> Tensor:
    """Return one size (B,) for both parts, (B, 2)."""
    return size[:, None].expand(-1, 2)


def largest(x: Tensor) -> Tensor:
    """Return the largest modulus of every row, 0 for rows without entries; (B, n) to (B,)."""
    return x.abs().amax(dim=1) if x.shape[1] else x.abs().sum(dim=1)
