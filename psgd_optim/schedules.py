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
class Adaptive:
    """A step size of `Q` that follows the measured whitening error of each row.

    The error is the average of `|mean |P h|^2 / mean |v|^2 - 1|` over past fits, 0 where the
    preconditioned sample has the size of the probe; the step size is that error, within limits.
    Measuring it costs one more application of `P` in a step that fits `Q`.

    Args:
        low: Smallest step size, above 0.
        high: Largest step size, below 1; also the one at the start.
        decay: Of the average.

    Raises:
        ValueError: If not `0 < low <= high < 1`, or the decay is outside [0, 1).
    """

    low: float = 0.01
    high: float = 0.7
    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < 1 or not 0 <= self.decay < 1:
            raise ValueError(f"Got {self}; give 0 < low <= high < 1 and decay in [0, 1).")

    def __call__(self, step: int) -> float:
        """Return the largest step size, whatever the step."""
        return self.high


@final
@dataclass(frozen=True)
class LogPeriod:
    """The gate whose period is the number of digits of the step, less one, and at least 1.

    Counting steps from 1 as its source does, it is open at step `t` when `t` is a multiple of
    `max(floor(log10 t), 1)`: at each of the first 100 steps, then at every second up to 1000, at
    every third up to 10 000. In 500 000 steps it opens 106 050 times.

    Source: S0 experiment 4. Deviation: none, but that steps count
    from 0 here: the source's `t` is `step + 1`.

    >>> [t for t in range(97, 107) if LogPeriod()(t - 1)]
    [97, 98, 99, 100, 102, 104, 106]
    """

    def __call__(self, step: int) -> float:
        """Return 1 at an opening, else 0."""
        t = step + 1
        period = max(len(str(t)) - 1, 1)  # digits, not a logarithm: exact at powers of ten
        return float(t % period == 0)
