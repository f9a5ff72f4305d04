"""One-axis factors of a Kronecker preconditioner, each with the same handful of operations.

A factor is a stateless value; its numbers `q` live in the form's state. `P = Q^H Q` throughout.
"""

import abc
from typing import final

import torch
from torch import Tensor

from psgd_optim import linalg
from psgd_optim.geometry import Geometry


class Factor(abc.ABC):
    """The kind of one axis' factor."""

    name: str

    @abc.abstractmethod
    def numel(self, n: int) -> int:
        """Return how many numbers the factor of an axis of size `n` stores."""

    @abc.abstractmethod
    def init(self, n: int, scale: Tensor) -> Tensor:
        """Return `scale * I` for an axis of size `n`, one per entry of `scale` (B,)."""

    @abc.abstractmethod
    def matrix(self, q: Tensor) -> Tensor:
        """Return the factor as a full matrix, (B, n, n)."""

    @abc.abstractmethod
    def precondition(self, q: Tensor, x: Tensor, axis: int) -> Tensor:
        """Return `x ×_axis Q^H Q`."""

    @abc.abstractmethod
    def gram(self, x: Tensor, axis: int) -> Tensor:
        """Return the part of the Gram matrix of an axis of `x` that the factor can fit."""

    @abc.abstractmethod
    def start(self, q: Tensor, rows: int, generator: torch.Generator) -> Tensor | None:
        """Draw the random rows that one update's norm estimates start from, if it needs any."""

    @abc.abstractmethod
    def curvature(self, t1: Tensor, t2: Tensor | float, start: Tensor | None) -> Tensor:
        """Bound the norm of `T1 + T2`, (B,); a number `t2` stands for that multiple of `I`."""

    @abc.abstractmethod
    def move(
        self, geometry: Geometry, q: Tensor, d: Tensor, step: Tensor, start: Tensor | None
    ) -> Tensor:
        """Return `q` after a step (B,) along the difference `d` in a geometry's coordinates."""

    @abc.abstractmethod
    def difference(self, t1: Tensor, t2: Tensor | float) -> Tensor:
        """Return `T1 - T2`; a number `t2` stands for that multiple of `I`."""


@final
class General(Factor):
    """A full matrix, (B, n, n)."""

    name = "dense"

    def numel(self, n: int) -> int:
        """Return n^2."""
        return n * n

    def init(self, n: int, scale: Tensor) -> Tensor:
        """Return `scale * I`, (B, n, n)."""
        eye = torch.eye(n, dtype=scale.dtype, device=scale.device)
        return scale[:, None, None] * eye

    def matrix(self, q: Tensor) -> Tensor:
        """Return `q` itself."""
        return q

    def precondition(self, q: Tensor, x: Tensor, axis: int) -> Tensor:
        """Return `x ×_axis Q^H Q`, through `Q^H Q` where that costs fewer products."""
        n = q.shape[-1]
        if x[0].numel() > n * n:
            return linalg.mode_product(q.mH @ q, x, axis)
        return linalg.mode_product(q.mH, linalg.mode_product(q, x, axis), axis)

    def gram(self, x: Tensor, axis: int) -> Tensor:
        """Return the Gram matrix, (B, n, n)."""
        return linalg.mode_gram(x, axis)

    def start(self, q: Tensor, rows: int, generator: torch.Generator) -> Tensor | None:
        """Draw `rows` standard normal rows, (B, rows, n)."""
        real = torch.promote_types(q.real.dtype, torch.float32)
        shape = (q.shape[0], rows, q.shape[-1])
        return torch.randn(shape, generator=generator, dtype=real, device=q.device)

    def curvature(self, t1: Tensor, t2: Tensor | float, start: Tensor | None) -> Tensor:
        """Bound the spectral norm, (B,); exact in `t2` when it is a multiple of `I`."""
        if start is None:
            raise ValueError("A dense factor's update needs the random rows that draw() makes.")
        if isinstance(t2, Tensor):
            return linalg.spectral_norm_bound(t1 + t2, start)
        return linalg.spectral_norm_bound(t1, start) + t2

    def difference(self, t1: Tensor, t2: Tensor | float) -> Tensor:
        """Return `T1 - T2`, (B, n, n)."""
        if isinstance(t2, Tensor):
            return t1 - t2
        return t1 - t2 * torch.eye(t1.shape[-1], dtype=t1.dtype, device=t1.device)

    def move(
        self, geometry: Geometry, q: Tensor, d: Tensor, step: Tensor, start: Tensor | None
    ) -> Tensor:
        """Return the moved matrix."""
        if start is None:
            raise ValueError("A dense factor's update needs the random rows that draw() makes.")
        return geometry.move_matrix(q, d, step.to(d.real.dtype), start)


@final
class Diagonal(Factor):
    """The diagonal of a matrix, (B, n)."""

    name = "diagonal"

    def numel(self, n: int) -> int:
        """Return n."""
        return n

    def init(self, n: int, scale: Tensor) -> Tensor:
        """Return `scale` repeated, (B, n)."""
        return scale[:, None].repeat(1, n)

    def matrix(self, q: Tensor) -> Tensor:
        """Return the diagonal matrix, (B, n, n)."""
        return torch.diag_embed(q)

    def precondition(self, q: Tensor, x: Tensor, axis: int) -> Tensor:
        """Return `x` scaled along an axis by |q|^2."""
        return linalg.mode_scale(linalg.abs_square(q), x, axis)

    def gram(self, x: Tensor, axis: int) -> Tensor:
        """Return the diagonal of the Gram matrix, (B, n), real."""
        return linalg.mode_gram_diagonal(x, axis)

    def start(self, q: Tensor, rows: int, generator: torch.Generator) -> Tensor | None:
        """Return nothing: a diagonal's norm is its largest entry."""
        return None

    def curvature(self, t1: Tensor, t2: Tensor | float, start: Tensor | None) -> Tensor:
        """Return the largest entry of `T1 + T2`, (B,)."""
        return (t1 + t2).amax(dim=1)

    def difference(self, t1: Tensor, t2: Tensor | float) -> Tensor:
        """Return `t1 - t2`, (B, n)."""
        return t1 - t2

    def move(
        self, geometry: Geometry, q: Tensor, d: Tensor, step: Tensor, start: Tensor | None
    ) -> Tensor:
        """Return the moved diagonal."""
        return geometry.move_diagonal(q, d, step.to(d.dtype))


GENERAL = General()
DIAGONAL = Diagonal()
