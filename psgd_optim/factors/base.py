"""The interface of one axis' factor: what every file beside this one implements.

A factor is a stateless value; its numbers `q` live in a form's state, (B, ...). `P = Q^H Q`
throughout, and `x ×_i M` contracts the second index of `M` with axis `i` of `x`.
"""

import abc
from typing import ClassVar

import torch
from torch import Tensor

from psgd_optim.group_gradient import FactorGradient


class Factor(abc.ABC):
    """The pattern of one axis' factor; concrete factors are final frozen dataclasses."""

    name: ClassVar[str]

    def __repr__(self) -> str:
        return type(self).__name__.upper()

    @abc.abstractmethod
    def numel(self, n: int) -> int:
        """Return how many numbers the factor of an axis of size `n` has."""

    @abc.abstractmethod
    def init(self, n: int, scale: Tensor) -> Tensor:
        """Return `scale * I` for an axis of size `n`, one per entry of `scale` (B,)."""

    @abc.abstractmethod
    def matrix(self, q: Tensor) -> Tensor:
        """Return the factor as a full matrix, (B, n, n)."""

    @abc.abstractmethod
    def multiply(self, q: Tensor, x: Tensor, axis: int) -> Tensor:
        """Return `x ×_axis Q`."""

    @abc.abstractmethod
    def multiply_adjoint(self, q: Tensor, x: Tensor, axis: int) -> Tensor:
        """Return `x ×_axis Q^H`."""

    @abc.abstractmethod
    def solve_adjoint(self, q: Tensor, x: Tensor, axis: int) -> Tensor:
        """Return `x ×_axis Q^-H`; not finite where `Q` is singular."""

    def square(self, q: Tensor, elements: int, uses: float) -> Tensor | None:
        """Return `Q^H Q` in the layout of `multiply`, or `None` where two products cost less.

        Args:
            q: The numbers of `Q`.
            elements: Of one tensor that it multiplies.
            uses: How many tensors it multiplies before `Q` changes.
        """
        return None

    def precondition(self, q: Tensor, x: Tensor, axis: int) -> Tensor:
        """Return `x ×_axis Q^H Q`."""
        p = self.square(q, x[0].numel(), 1.0)
        if p is not None:
            return self.multiply(p, x, axis)
        return self.multiply_adjoint(q, self.multiply(q, x, axis), axis)

    @abc.abstractmethod
    def gram(self, x: Tensor, axis: int) -> Tensor:
        """Return the part of the Gram matrix of an axis of `x` that the gradient needs."""

    @abc.abstractmethod
    def gradient(self, t1: Tensor, t2: Tensor | float, start: Tensor | None) -> FactorGradient:
        """Return the gradient with the curvature terms that `gram` makes.

        Args:
            t1: What `gram` returned, or a sum of such.
            t2: Like `t1`; for a symmetric factor also a number, for that multiple of `I`.
            start: The rows that `start` drew.
        """

    def start(self, q: Tensor, rows: int, generator: torch.Generator) -> Tensor | None:
        """Draw the random rows that one update's norm estimates start from, if it needs any."""
        return None


class SymmetricFactor(Factor):
    """A factor that may be Hermitian: geometries other than EQ move it, and it may store `P`."""

    @abc.abstractmethod
    def congruence(self, q: Tensor, t: Tensor | float) -> Tensor:
        """Return `Q T Q^H` for a term `T` that `gram` made; a number is a multiple of `I`."""

    @abc.abstractmethod
    def hermitian(self, q: Tensor) -> Tensor:
        """Return the Hermitian part of the factor."""

    @abc.abstractmethod
    def root(self, q: Tensor) -> Tensor:
        """Return the Hermitian root of the factor's Hermitian part as a full matrix."""
