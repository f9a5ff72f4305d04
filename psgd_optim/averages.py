"""Averages over steps, with a ramp that makes the first ones plain means."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from psgd_optim.linalg import per_block


@final
@dataclass(frozen=True)
class Nesterov:
    """Momentum that looks ahead: the step is taken along `b m + (1 - b) g` with the new `m`.

    Args:
        decay: The decay `b` of the gradient average, in [0, 1).
    """

    decay: float


def fold_in(average: Tensor, x: Tensor, steps: Tensor, active: Tensor, decay: float) -> Tensor:
    """Take `m <- b m + (1 - b) x` with `b = min(t / (t + 1), decay)`, in place.

    Args:
        average: (B, *shape), the average `m`.
        x: (B, *shape), finite, the new value.
        steps: (B,), the number `t` of values in it.
        active: (B,), 1 for rows that take part, 0 for rows to leave alone.
        decay: The decay in the long run.

    Returns:
        The average itself.
    """
    weight = active * (1 - (steps / (steps + 1)).clamp(max=decay))
    return average.lerp_(x, per_block(weight.to(x.real.dtype), x).to(x.dtype))
