"""Limits on the preconditioned gradient, applied before the step is taken.

A clip changes a list of stacks (B, *shape) in place, so that it can look at all parameters at
once. Several clips apply in the order given.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from psgd_optim.linalg import abs_square, per_block


@dataclass(frozen=True)
class Clip(abc.ABC):
    """One limit.

    Args:
        limit: The largest value allowed, above 0.

    Raises:
        ValueError: If the limit is not above 0.
    """

    limit: float

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ValueError(
                f"{type(self).__name__} got the limit {self.limit}; give a number above 0."
            )

    @abc.abstractmethod
    def clip_(self, updates: Sequence[Tensor]) -> None:
        """Bring the updates, one (B, *shape) per block, within the limit, in place."""


@final
@dataclass(frozen=True)
class ClipRMS(Clip):
    """Limits the root mean square of each parameter's update; 1 is a fully whitened gradient.

    Source: design formulas 8.1, apply.
    """

    def clip_(self, updates: Sequence[Tensor]) -> None:
        """Scale down every parameter whose root mean square is above the limit."""
        for update in updates:
            rms = _rms(update)
            update.mul_(per_block(_shrink(rms, self.limit), update))


@final
@dataclass(frozen=True)
class ClipElement(Clip):
    """Limits the modulus of each element."""

    def clip_(self, updates: Sequence[Tensor]) -> None:
        """Scale down every element above the limit, keeping its sign or phase."""
        for update in updates:
            if update.is_complex():
                update.mul_(_shrink(update.abs(), self.limit))
            else:
                update.clamp_(-self.limit, self.limit)


@final
@dataclass(frozen=True)
class ClipNorm(Clip):
    """Limits the 2-norm over all parameters, so that a step is at most `lr * limit` long.

    Source: S0 (14), S1 section 4.4.
    """

    def clip_(self, updates: Sequence[Tensor]) -> None:
        """Scale down all updates by the same factor when their joint norm is above the limit."""
        if updates:
            norms = [update.norm() for update in updates]
            joint = torch.stack([norm.to(norms[0].device) for norm in norms]).norm()
            for update in updates:
                update.mul_(_shrink(joint, self.limit).to(update.device))


def _rms(x: Tensor) -> Tensor:
    """Return the root mean square of each row, (B,), of any size that the dtype holds."""
    peak = x.abs().flatten(1).amax(dim=1).clamp(min=torch.finfo(x.dtype).tiny)  # (B,)
    return peak * abs_square(x / per_block(peak, x)).flatten(1).mean(dim=1).sqrt()


def _shrink(size: Tensor, limit: float) -> Tensor:
    """Return the factors that bring sizes within a limit, 1 where they already are."""
    return (limit / size).clamp(max=1.0)  # 0 / 0 does not occur: limit > 0
