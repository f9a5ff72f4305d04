"""Limits and scales of the preconditioned gradient, applied before the step is taken.

An entry of an optimizer's `clip` is any per-step change of the preconditioned gradients: most
are limits, `MatchRMS` is a scale. It changes a list of `Update`s in place, one for each stack of
rows, so that it can look at all parameters at once. Several apply in the order given.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from psgd_optim.updates import Update


class Clip(abc.ABC):
    """One change of the preconditioned gradients, a limit or a scale."""

    needs_lengths: ClassVar[bool] = False
    """Whether it looks at `Update.lengths`, which are known only if a clip does."""

    @abc.abstractmethod
    def clip_(self, updates: Sequence[Update]) -> None:
        """Change the updates, one per block and finite, in place."""


@dataclass(frozen=True)
class Limit(Clip):
    """A change that leaves alone what is within a limit.

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


@final
@dataclass(frozen=True)
class ClipRMS(Limit):
    """Limits the root mean square of each parameter's update; 1 is a fully whitened gradient.

    Source: design formulas 8.1, apply.
    """

    def clip_(self, updates: Sequence[Update]) -> None:
        """Scale down every parameter whose root mean square is above the limit."""
        for update in updates:
            if not update.surely_within(self.limit):
                update.scale_(_shrink(update.rms(), self.limit))


@final
@dataclass(frozen=True)
class ClipElement(Limit):
    """Limits the modulus of each element."""

    def clip_(self, updates: Sequence[Update]) -> None:
        """Scale down every element above the limit, keeping its sign or phase."""
        for update in updates:
            update.limit_(self.limit)


@final
@dataclass(frozen=True)
class ClipNorm(Limit):
    """Limits the 2-norm over all parameters, so that a step is at most `lr * limit` long.

    Source: S0 (14), S1 section 4.4.
    """

    def clip_(self, updates: Sequence[Update]) -> None:
        """Scale down all updates by the same factor when their joint norm is above the limit."""
        _clip_joint_(updates, [update.norms() for update in updates], self.limit)


@final
@dataclass(frozen=True)
class ClipJointRMS(Limit):
    """Limits the root mean square over all parameters together: a trust region of any model's size.

    A limit of `c` is `ClipNorm(c * sqrt(n))` for `n` numbers in all.

    Source: S1 section 4.4 and S0 (14) with a threshold that grows with the root of `n`.
    """

    def clip_(self, updates: Sequence[Update]) -> None:
        """Scale down all updates by the same factor when they are too large together."""
        most = self.limit * sum(update.rows.numel() for update in updates) ** 0.5
        _clip_joint_(updates, [update.norms() for update in updates], most)


@final
@dataclass(frozen=True)
class TrustRegion(Limit):
    """Limits how far all updates together move in the model that they come from.

    An update `u = P m` minimises a quadratic model whose Hessian is `P^-1`. Such an update moves
    it by `u^T P^-1 u / 2 = m^T u / 2`, which costs no more than that product; updates that move it
    by more than the limit are all scaled down by `sqrt(2 limit / m^T u)`. A step takes `lr` times
    the update, and so moves the model by at most `lr^2 limit`: with `lr = 1`, and `P` fitted to
    the Hessian of a policy's KL divergence, the limit is that of the divergence in nats.

    Clips that come before it and scale whole rows are accounted for; `ClipElement` as if it had
    not been there. Groups with different `lr` share the limit before their `lr`.

    Source: Schulman et al. 2015 (arXiv 1502.05477), appendix C: the largest step along the
    natural gradient, `sqrt(2 delta / s^T A s)`. Deviations: steps shorter than that are left
    alone, and `P^-1` stands for `A`.
    """

    needs_lengths: ClassVar[bool] = True

    def clip_(self, updates: Sequence[Update]) -> None:
        """Scale down all updates by the same factor when they leave the region together."""
        _clip_joint_(updates, [update.lengths() for update in updates], (2 * self.limit) ** 0.5)


@final
@dataclass(frozen=True)
class MatchRMS(Clip):
    """Scales each parameter's update to one root mean square, so that one `lr` serves all widths.

    The update of a parameter that has none, an all-zero one, stays zero. Clips that come before
    it lose their scale but keep their effect on the direction.

    Args:
        target: The root mean square, above 0; 0.2 is about that of an AdamW update, so that an
            `lr` tuned for AdamW carries over.

    Raises:
        ValueError: If the target is not above 0.

    Source: the convention of `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`, which multiplies
    an orthogonal M x N update, of root mean square `max(M, N) ** -0.5`, by `0.2 max(M, N) ** 0.5`.
    Deviation: the root mean square is measured, so that the target is met whatever the rank and
    the shape of the update.
    """

    target: float = 0.2

    def __post_init__(self) -> None:
        if not self.target > 0:
            raise ValueError(f"MatchRMS got the target {self.target}; give a number above 0.")

    def clip_(self, updates: Sequence[Update]) -> None:
        """Scale every parameter's update to the target, but for zero ones."""
        for update in updates:
            rms = update.rms()
            # The factor of a subnormal update has no number of its own, but its root has.
            root = torch.where(rms > 0, self.target**0.5 / rms.sqrt(), 0)
            update.scale_(root)
            update.scale_(root)


def _clip_joint_(updates: Sequence[Update], sizes: Sequence[Tensor], limit: float) -> None:
    """Scale down all updates by the same factor when the norm of their sizes is above a limit.

    Args:
        updates: What to scale.
        sizes: (B,) each, the size of every row.
        limit: Above 0.
    """
    if not updates:
        return
    device = updates[0].rows.device
    norms = torch.cat([size.to(device) for size in sizes])
    # Relative to the largest, so that no square leaves the range of the dtype.
    peak = norms.amax().clamp(min=torch.finfo(norms.dtype).tiny)
    # The peak apart from the rest: their product may be too large where each of them is not.
    factor = (limit / peak / (norms / peak).norm()).clamp(max=1.0)
    for update in updates:
        update.scale_(factor.to(update.rows.device))


def _shrink(size: Tensor, limit: float) -> Tensor:
    """Return the factors that bring sizes within a limit, 1 where they already are."""
    return (limit / size).clamp(max=1.0)  # 0 / 0 does not occur: limit > 0
