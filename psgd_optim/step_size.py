"""How far one update moves a factor: what divides the preconditioner's step.

A normaliser picks one of the four sizes that a `GroupGradient` knows of itself, and may remember it
in the divisor of the next step. Rows never interact: every size is one number per row.
"""

import abc
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from psgd_optim.group_gradient import GroupGradient
from psgd_optim.linalg import lift


@dataclass(frozen=True, kw_only=True)
class Normaliser(abc.ABC):
    """Says what divides the step size of `Q`; a step is `rate / size` times the gradient."""

    @abc.abstractmethod
    def size(self, gradient: GroupGradient) -> Tensor:
        """Return the size of one sample's gradient that counts, (B,)."""

    def grow(self, lipschitz: Tensor, gradient: GroupGradient) -> Tensor:
        """Return the new divisor of the step, above 0.

        Args:
            lipschitz: (B,), the divisor so far, 0 at the start.
            gradient: The gradient from the current sample.

        Returns:
            (B,), in the dtype of `lipschitz`; not finite where the sample is too large.
        """
        size = lift(self.size(gradient)).to(lipschitz.dtype)
        return self.follow(lipschitz, size).clamp(min=torch.finfo(lipschitz.dtype).tiny)

    @abc.abstractmethod
    def follow(self, lipschitz: Tensor, size: Tensor) -> Tensor:
        """Return the divisor after one more sample of this size."""


@dataclass(frozen=True, kw_only=True)
class _FirstOrder(Normaliser):
    """Divides by the current gradient's size: every step moves `Q` by the rate, relatively."""

    def follow(self, lipschitz: Tensor, size: Tensor) -> Tensor:
        """Return the size alone."""
        return size


@final
@dataclass(frozen=True, kw_only=True)
class MaxEntry(_FirstOrder):
    """Divides by the largest entry; keeps a positive diagonal of a triangular group positive.

    Source: S0, S1 (their default).
    """

    def size(self, gradient: GroupGradient) -> Tensor:
        """Return the largest modulus of an entry."""
        return gradient.max_entry()


@final
@dataclass(frozen=True, kw_only=True)
class SpectralNorm(_FirstOrder):
    """Divides by the spectral norm; keeps `Q` invertible on any group for rates below 1.

    Source: S2.
    """

    def size(self, gradient: GroupGradient) -> Tensor:
        """Return the spectral norm."""
        return gradient.spectral_norm()


@final
@dataclass(frozen=True, kw_only=True)
class FrobeniusNorm(_FirstOrder):
    """Divides by the Frobenius norm, at least the spectral norm and cheaper.

    Source: S2.
    """

    def size(self, gradient: GroupGradient) -> Tensor:
        """Return the Frobenius norm."""
        return gradient.frobenius_norm()


@final
@dataclass(frozen=True, kw_only=True)
class LipschitzEMA(Normaliser):
    """Divides by a slowly forgotten bound of the criterion's curvature, a second-order step.

    `L <- max(beta L + (1 - beta) l, l)` rises at once with the bound `l` of the current sample
    and falls slowly, so that a step `rate / L` is stable for any `rate` below 1, and vanishes as
    the gradient does.

    Args:
        beta: How much of the old value one update keeps, in [0, 1).

    Raises:
        ValueError: If `beta` is outside [0, 1).

    Source: design formulas 8.0.
    """

    beta: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(f"LipschitzEMA got beta = {self.beta}; give a number in [0, 1).")

    def size(self, gradient: GroupGradient) -> Tensor:
        """Return the bound of the curvature."""
        return gradient.curvature()

    def follow(self, lipschitz: Tensor, size: Tensor) -> Tensor:
        """Return the average, at least the size."""
        return torch.maximum(self.beta * lipschitz + (1 - self.beta) * size, size)
