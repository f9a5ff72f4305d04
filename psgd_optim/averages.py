"""Averages over steps, with a ramp that makes the first ones plain means."""

import functools
import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from psgd_optim.linalg import Mask, cast, per_block


@final
@dataclass(frozen=True)
class Nesterov:
    """Momentum that looks ahead: the step is taken along `b m + (1 - b) g` with the new `m`.

    Args:
        decay: The decay `b` of the gradient average, in [0, 1).
    """

    decay: float


def fold_in(
    average: Tensor, x: Tensor, steps: Tensor | None, active: Mask, decay: float | Tensor
) -> Tensor:
    """Take `m <- b m + (1 - b) x` with `b = min(t / (t + 1), decay)`, in place.

    Args:
        average: (B, *shape), the average `m`.
        x: (B, *shape), finite, the new value.
        steps: (B,), or with more leading axes of `x`, the number `t` of values in it; `None` if it
            is known that all take part and have more than the decay looks at.
        active: The rows that take part; the others are left alone.
        decay: The decay in the long run; a number, or a 0-D tensor beside given steps.

    Returns:
        The average itself.
    """
    if steps is None:
        return average.lerp_(x, _last_weight(float(decay)))
    ramp = steps / (steps + 1)
    if isinstance(decay, Tensor):
        weight = 1 - torch.minimum(ramp, cast(decay, ramp.dtype))
    else:
        weight = 1 - ramp.clamp_(max=decay)
    if active is not None:
        weight = weight * per_block(active, weight)
    return average.lerp_(x, cast(per_block(weight, x), x.dtype))


@functools.lru_cache
def _last_weight(decay: float) -> float:
    """Return the weight of a new value in the long run, as the ramp in single precision ends."""
    return float(1 - torch.tensor(decay, dtype=torch.float32, device="cpu"))


def fold_in_zeros(steps: Tensor, missed: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Return what `fold_in` of some zeros makes of averages.

    Args:
        steps: Any shape, the number of values in each average; 0 in those that have not started.
        missed: Of that shape, how many zeros there are.
        decay: The decay in the long run.

    Returns:
        The number of values afterwards, and what to multiply the averages by.
    """
    started = steps > 0
    after = torch.where(started, steps + missed, steps)
    # The decays t / (t + 1) up to `last` multiply to a quotient, those after it to a power.
    last = math.floor(decay / (1 - decay)) + 1
    ramp = steps.clamp(min=1, max=last) / after.clamp(min=1, max=last)
    power = decay ** (after.clamp(min=last) - steps.clamp(min=last))
    return after, ramp * power
