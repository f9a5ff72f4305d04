"""Upper block triangular matrices: groups on the diagonal, full blocks to the right of it.

`[A C; 0 B]` is invertible with `A` and `B`, and products and inverses keep the pattern, whatever
groups `A` and `B` are from. Source: S1 (21); algorithms 4.11.
"""

from typing import final

import torch
from torch import Tensor

from psgd_optim.factors.base import Factor
from psgd_optim.factors.matrix import MatrixFactor
from psgd_optim.group_gradient import FactorGradient, GroupGradient
from psgd_optim.linalg import abs_square
from psgd_optim.types import State


@final
class BlockMatrix:
    """An upper block triangular `Q`; vectors are (B, N)."""

    def __init__(self, plan: list[tuple[Factor, int]], numbers: State) -> None:
        """Keep the numbers.

        Args:
            plan: The kind and the size of each diagonal block.
            numbers: `q{i}`, the diagonal block `i`, and `c{i}`, (B, n_i, rest), what is to the
                right of it.
        """
        self.kinds = [kind for kind, _ in plan]
        self._sizes = [n for _, n in plan]
        self._q = [numbers[f"q{i}"] for i in range(len(plan))]
        self._c = [numbers[f"c{i}"] for i in range(len(plan) - 1)]

    def parts(self, x: Tensor) -> list[Tensor]:
        """Return the part of a vector that belongs to each block."""
        return list(torch.split(x, self._sizes, dim=1))

    def multiply(self, x: Tensor) -> Tensor:
        """Return `Q x`."""
        y = []
        for i, (kind, q) in enumerate(zip(self.kinds, self._q, strict=True)):
            own, x = x[:, : self._sizes[i]], x[:, self._sizes[i] :]
            above = kind.multiply(q, own, 0)
            y.append(above + (self._c[i] @ x[..., None])[..., 0] if i < len(self._c) else above)
        return torch.cat(y, dim=1)

    def solve_adjoint(self, x: Tensor) -> Tensor:
        """Return `Q^-H x`, by substitution from the first block on."""
        y = []
        for i, (kind, q) in enumerate(zip(self.kinds, self._q, strict=True)):
            own, x = x[:, : self._sizes[i]], x[:, self._sizes[i] :]
            y.append(kind.solve_adjoint(q, own, 0))
            if i < len(self._c):
                x = x - (self._c[i].mH @ y[i][..., None])[..., 0]
        return torch.cat(y, dim=1)

    def tails(self, x: Tensor) -> list[Tensor]:
        """Return `Q_i^H x_i` for each `Q_i`, the blocks from `i` on, and `x_i`, their part."""
        parts = self.parts(x)
        products: list[Tensor] = []
        for i in reversed(range(len(parts))):
            product = self.kinds[i].multiply_adjoint(self._q[i], parts[i], 0)
            if products:
                coupled = (self._c[i].mH @ parts[i][..., None])[..., 0]
                product = torch.cat([product, coupled + products[-1]], dim=1)
            products.append(product)
        return products[::-1]

    def directions(self, gradient: "BlocksGradient", a: Tensor, b: Tensor) -> State:
        """Return `E Q` block by block, under the names of `numbers`.

        Args:
            gradient: Of the same vectors.
            a: (B, N), `Q h`.
            b: (B, N), `Q^-H v`.
        """
        moves: State = {f"q{i}": e.left(self._q[i]) for i, e in enumerate(gradient.each)}
        tails_a, tails_b, a_parts, b_parts = self.tails(a), self.tails(b), *map(self.parts, (a, b))
        for i, c in enumerate(self._c):
            # The rows above the rest of Q, Q_r: a a_r^H Q_r = a (Q_r^H a_r)^H.
            both = _outer(a_parts[i], tails_a[i + 1]) - _outer(b_parts[i], tails_b[i + 1])
            moves[f"c{i}"] = both + gradient.left_rows(i, c)
        return moves

    def matrix(self) -> Tensor:
        """Return `Q`, (B, N, N)."""
        n, rows = sum(self._sizes), []
        for i, (kind, q) in enumerate(zip(self.kinds, self._q, strict=True)):
            block = kind.matrix(q)
            row = torch.cat([block, self._c[i]], dim=2) if i < len(self._c) else block
            rows.append(torch.nn.functional.pad(row, (n - row.shape[2], 0)))
        return torch.cat(rows, dim=1)


@final
class BlocksGradient(GroupGradient):
    """The gradient `a a^H - b b^H`, cut to the pattern of a block triangular group."""

    def __init__(self, kinds: list[Factor], a: list[Tensor], b: list[Tensor]) -> None:
        """Keep the vectors.

        Args:
            kinds: The group of each diagonal block.
            a: (B, n_i) for each block.
            b: Like `a`.
        """
        self._kinds = kinds
        self.each = [_own_gradient(*block) for block in zip(kinds, a, b, strict=True)]
        self._weights = [abs_square(torch.cat([*x], 1)).sum(1) for x in zip(a, b, strict=True)]
        pairs = [torch.stack(x, dim=2) for x in zip(a, b, strict=True)]  # (B, n_i, 2)
        couplings = [
            _Coupling(pair, torch.cat(pairs[i + 1 :], dim=1)) for i, pair in enumerate(pairs[:-1])
        ]
        self._all: list[FactorGradient | _Coupling] = [*self.each, *couplings]

    def left_rows(self, i: int, c: Tensor) -> Tensor:
        """Return `E_i C` for the gradient of block `i` and rows right of it, (B, n_i, rest)."""
        kind, e = self._kinds[i], self.each[i]
        if isinstance(kind, MatrixFactor):  # of rank two: no matrix product
            return e.left(c)
        ones = torch.ones_like(c[:, 0, 0])
        return kind.multiply(e.left(kind.init(c.shape[1], ones)), c, 0)

    def max_entry(self) -> Tensor:
        """Return the largest modulus of an entry."""
        return _largest([x.max_entry() for x in self._all])

    def spectral_norm(self) -> Tensor:
        """Return the largest norm of a block, which those of the diagonal must not pass."""
        return _largest([x.spectral_norm() for x in self._all])

    def frobenius_norm(self) -> Tensor:
        """Return the 2-norm of all entries."""
        norms = [x.frobenius_norm() for x in self._all]
        norm: Tensor = torch.stack(norms).norm(dim=0)
        return norm

    def curvature(self) -> Tensor:
        """Bound the norm of the part of `T1 + T2` that a row of the pattern sees."""
        rest = torch.zeros_like(self._weights[-1])
        sums = []
        for e, weight in zip(reversed(self.each), reversed(self._weights), strict=True):
            sums.append(e.curvature() + rest)
            rest = rest + weight
        return _largest(sums)


@final
class _Coupling:
    """The sizes of `x y^H` with signs, `a_i a_r^H - b_i b_r^H`, of the block right of another."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        """Keep the pairs `a, b`, (B, n_i, 2) and (B, rest, 2)."""
        self._x, self._y = x, y * y.new_tensor([1.0, -1.0])

    def max_entry(self) -> Tensor:
        return (self._x @ self._y.mH).abs().amax(dim=(1, 2))

    def frobenius_norm(self) -> Tensor:
        return self._squares()[0].sqrt()

    def spectral_norm(self) -> Tensor:
        total, product = self._squares()
        root = (total.square() - 4 * product).clamp(min=0).sqrt()
        return (0.5 * (total + root)).sqrt()

    def _squares(self) -> tuple[Tensor, Tensor]:
        """Return sum and product of the two squared singular values, from 2 x 2 Gram matrices."""
        x, y = self._x.mH @ self._x, self._y.mH @ self._y
        total = (x * y.mT).sum(dim=(1, 2)).real
        return total.clamp(min=0), (_determinant(x) * _determinant(y)).clamp(min=0)


def _own_gradient(kind: Factor, a: Tensor, b: Tensor) -> FactorGradient:
    """Return the gradient of a diagonal block, exact in its sizes where that is cheap."""
    if isinstance(kind, MatrixFactor):
        return kind.rank_two(a, b)
    return kind.gradient(kind.gram(a, 0), kind.gram(b, 0), None)


def _determinant(x: Tensor) -> Tensor:
    """Return the determinants of Hermitian 2 x 2 matrices, (B,)."""
    return (x[:, 0, 0] * x[:, 1, 1]).real - abs_square(x[:, 0, 1])


def _outer(x: Tensor, y: Tensor) -> Tensor:
    """Return `x y^H`, (B, n, m)."""
    return x[:, :, None] * y[:, None, :].conj()


def _largest(sizes: list[Tensor]) -> Tensor:
    """Return the largest of some sizes, row by row."""
    return torch.stack(sizes).amax(dim=0)
