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


@final
@dataclass(frozen=True)
class LogPeriod:
    """The gate whose period is the number of digits of the step, less one, and at least 1.

    Counting steps from 1 as its source does, it is open at step `t` when `t` is a multiple of
    `max(floor(log10 t), 1)`: at each of the first 100 steps, then at every second up to 1000, at
    every third up to 10 000. In 500 000 steps it opens 106 050 times.

    Source: S0 experiment 4; algorithms.md section 3.5. Deviation: none, but that steps count
    from 0 here: the source's `t` is `step + 1`.

    >>> [t for t in range(97, 107) if LogPeriod()(t - 1)]
    [97, 98, 99, 100, 102, 104, 106]
    """

    def __call__(self, step: int) -> float:
        """Return 1 at an opening, else 0."""
        t = step + 1
        period = max(len(str(t)) - 1, 1)  # digits, not a logarithm: exact at powers of ten
        return float(t % period == 0)
