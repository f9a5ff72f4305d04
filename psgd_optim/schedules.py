"""Rates that depend on the step: values that map a step, counted from 0, to a number.

A gate is a rate read as a probability: a step fits the preconditioner with that probability.
"""

import math
from dataclasses import dataclass
from typing import final

from psgd_optim.types import Rate


def value_at(rate: Rate, step: int) -> float:
    """Return the value of a number or a schedule at a step."""
    return rate(step) if callable(rate) else rate


@final
@dataclass(frozen=True)
class Every:
    """The gate that is open at every `period`-th step, the first one included.

    Args:
        period: Steps from one opening to the next, at least 1.

    Raises:
        ValueError: If the period is below 1.

    >>> [Every(3)(step) for step in range(5)]
    [1.0, 0.0, 0.0, 1.0, 0.0]
    """

    period: int

    def __post_init__(self) -> None:
        if self.period < 1:
            raise ValueError(f"Every got the period {self.period}; give a whole number from 1 on.")

    def __call__(self, step: int) -> float:
        """Return 1 at an opening, else 0."""
        return float(step % self.period == 0)


@final
@dataclass(frozen=True)
class Anneal:
    """A rate that stays at `start` and then falls exponentially to `end`.

    Its value is `max(end, start * exp(-decay * (step - flat)))` after the flat start.

    Args:
        start: The value for the first `flat` steps.
        end: The value it never falls below.
        flat: Steps before the fall.
        decay: How fast it falls, per step: by a factor e in 1 / decay steps.

    Raises:
        ValueError: If not `start >= end >= 0`, or `flat` or `decay` is negative.

    >>> gate = Anneal(1.0, 0.03)
    >>> gate(500), gate(4006) > 0.03, gate(4007)
    (1.0, True, 0.03)
    """

    start: float
    end: float
    flat: int = 500
    decay: float = 1e-3

    def __post_init__(self) -> None:
        if not self.start >= self.end >= 0 or self.flat < 0 or self.decay < 0:
            raise ValueError(
                f"Got {self}; give start >= end >= 0 and neither flat nor decay below 0."
            )

    def __call__(self, step: int) -> float:
        """Return the value at a step."""
        return max(self.end, self.start * math.exp(-self.decay * max(0, step - self.flat)))
