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
from psgd_optim.linalg import abs_square, per_block
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

    def moved(self, gradient: "BlocksGradient", steps: Tensor, a: Tensor, b: Tensor) -> State:
        """Return `(I - E) Q` block by block, under the names of `numbers`.

        Args:
            gradient: Of the same vectors.
            steps: (B, 2 blocks - 1), what multiplies each part of the gradient in `E`.
            a: (B, N), `Q h`.
            b: (B, N), `Q^-H v`.
        """
        own, coupled = steps[:, : len(self._q)], steps[:, len(self._q) :]
        new: State = {}
        for i, (q, e) in enumerate(zip(self._q, gradient.each, strict=True)):
            new[f"q{i}"] = q - per_block(own[:, i], q) * e.left(q)
        tails_a, tails_b, a_parts, b_parts = self.tails(a), self.tails(b), *map(self.parts, (a, b))
        for i, c in enumerate(self._c):
            # The rows above the rest of Q, Q_r: a a_r^H Q_r = a (Q_r^H a_r)^H.
            both = _outer(a_parts[i], tails_a[i + 1]) - _outer(b_parts[i], tails_b[i + 1])
            move = per_block(coupled[:, i], c) * both
            new[f"c{i}"] = c - move - per_block(own[:, i], c) * gradient.left_rows(i, c)
        return new

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
    """The gradient `a a^H - b b^H`, cut to the pattern of a block triangular group.

    Every size is (B, 2 blocks - 1): of the diagonal blocks, then of what is right of each. The
    paper has one step for all, divided by the largest size of a block, and so have the sizes of
    first order. One bound of the curvature for all would be that of the longest row, about twice
    the number of columns, where a diagonal block needs only its largest entry; separate positive
    steps still descend, as the parts are orthogonal.
    """

    def __init__(self, kinds: list[Factor], a: list[Tensor], b: list[Tensor]) -> None:
        """Keep the vectors.

        Args:
            kinds: The group of each diagonal block.
            a: (B, n_i) for each block.
            b: Like `a`.
        """
        self._kinds = kinds
        self.each = [_own_gradient(*block) for block in zip(kinds, a, b, strict=True)]
        self._squares = [[abs_square(x).sum(dim=1) for x in parts] for parts in (a, b)]
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
        """Return the largest modulus of an entry of all."""
        return self._shared(_largest([x.max_entry() for x in self._all]))

    def spectral_norm(self) -> Tensor:
        """Return the largest norm of a block, which those of the diagonal must not pass."""
        return self._shared(_largest([x.spectral_norm() for x in self._all]))

    def frobenius_norm(self) -> Tensor:
        """Return the 2-norm of all entries."""
        norms = [x.frobenius_norm() for x in self._all]
        return self._shared(torch.stack(norms).norm(dim=0))

    def curvature(self) -> Tensor:
        """Return a bound for each part.

        Moving `C` by `E` changes `a` by `E a_r` and `b` by `E^H b_i`: rows see `a_r`, the part
        right of them, and columns every `b_i` above them, all of which move at once.
        """
        a, b = self._squares
        above = torch.zeros_like(b[-1])
        for x in b[:-1]:
            above = above + x
        bounds, right = [], above
        for x in reversed(a[1:]):
            right = right + x
            bounds.append(right)
        return torch.stack([*(e.curvature() for e in self.each), *reversed(bounds)], dim=1)

    def _shared(self, size: Tensor) -> Tensor:
        """Return one size (B,) for every part."""
        return size[:, None].expand(-1, len(self._all))


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
