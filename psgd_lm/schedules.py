"""Learning-rate schedules as data: what part of its full value a step's learning rate is.

Every schedule is a pure function of the step and of the evaluations so far, so that a resumed run
needs no state of it. All of them begin with `warmup` steps of linear growth.
"""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from psgd_optim.types import InputError

History = Sequence[tuple[int, float]]
"""The evaluations so far: steps done, and validation loss."""


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        flag = f"--schedule.{name.replace('_', '-')}"
        raise InputError(f"Got schedule.{name} {value}; give {flag} {allowed}.")


@dataclass(frozen=True, kw_only=True)
class Warmup(abc.ABC):
    """Linear growth, and then what a concrete schedule says."""

    warmup: int = 100
    """Steps in which the learning rate grows linearly from almost 0 to its full value."""

    def __post_init__(self) -> None:
        _require(self.warmup >= 0, "warmup", self.warmup, "0 or more")

    def check(self, steps: int) -> None:
        """Refuse a run that is too short for the schedule.

        Args:
            steps: Length of the run.
        """
        _require(self.warmup < steps, "warmup", self.warmup, f"less than the {steps} steps")

    def factor(self, step: int, steps: int, history: History) -> float:
        """Return the learning rate of a step as a part of its full value.

        Args:
            step: Steps done before this one.
            steps: Length of the run.
            history: The evaluations so far.

        Returns:
            In [0, 1].
        """
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        return self._after(step, steps, history)

    @abc.abstractmethod
    def _after(self, step: int, steps: int, history: History) -> float:
        """Return the factor of a step after the warmup."""

    def _progress(self, step: int, steps: int) -> float:
        """Return the part of the steps after the warmup that is over: 1 at the last step."""
        return (step - self.warmup) / max(1, steps - 1 - self.warmup)


@final
@dataclass(frozen=True, kw_only=True)
class Constant(Warmup):
    """The full learning rate to the end."""

    name: ClassVar[str] = "constant"

    def _after(self, step: int, steps: int, history: History) -> float:
        return 1.0


@final
@dataclass(frozen=True, kw_only=True)
class Cosine(Warmup):
    """Half a cosine down to the last step."""

    name: ClassVar[str] = "cosine"

    final: float = 0.1
    """Part of the learning rate that is left at the last step."""

    def __post_init__(self) -> None:
        Warmup.__post_init__(self)
        _require(0 <= self.final <= 1, "final", self.final, "between 0 and 1")

    def _after(self, step: int, steps: int, history: History) -> float:
        progress = self._progress(step, steps)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


@final
@dataclass(frozen=True, kw_only=True)
class Linear(Warmup):
    """A straight line down to the last step."""

    name: ClassVar[str] = "linear"

    final: float = 0.0
    """Part of the learning rate that is left at the last step."""

    def __post_init__(self) -> None:
        Warmup.__post_init__(self)
        _require(0 <= self.final <= 1, "final", self.final, "between 0 and 1")

    def _after(self, step: int, steps: int, history: History) -> float:
        return 1 - (1 - self.final) * self._progress(step, steps)


@final
@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay(Warmup):
    """The full learning rate, then a decay at the end of the run."""

    name: ClassVar[str] = "wsd"

    decay: float = 0.2
    """Part of the run's steps that decay, in (0, 1]."""
    final: float = 0.0
    """Part of the learning rate that is left at the last step."""
    shape: Literal["linear", "sqrt"] = "linear"
    """How it falls: with the steps that are over, or with their root, faster at first."""

    def __post_init__(self) -> None:
        Warmup.__post_init__(self)
        _require(0 < self.decay <= 1, "decay", self.decay, "above 0 and up to 1")
        _require(0 <= self.final <= 1, "final", self.final, "between 0 and 1")

    def check(self, steps: int) -> None:
        """Refuse a run whose decay would begin before the warmup ends.

        Args:
            steps: Length of the run.
        """
        Warmup.check(self, steps)
        stable = steps - self._decaying(steps)
        allowed = f"at most the {stable} steps before the decay"
        _require(self.warmup <= stable, "warmup", self.warmup, allowed)

    def _decaying(self, steps: int) -> int:
        return max(1, round(self.decay * steps))

    def _after(self, step: int, steps: int, history: History) -> float:
        count = self._decaying(steps)
        over = max(0, step + 1 - (steps - count)) / count
        return 1 - (1 - self.final) * (math.sqrt(over) if self.shape == "sqrt" else over)


@final
@dataclass(frozen=True, kw_only=True)
class Steps(Warmup):
    """Falls by a factor at given steps."""

    name: ClassVar[str] = "steps"

    at: tuple[float, ...] = (0.5, 0.725)
    """Steps after which it falls; a number below 1 is a part of the run."""
    factor_each: float = 0.1
    """What the learning rate is multiplied by each time."""

    def __post_init__(self) -> None:
        Warmup.__post_init__(self)
        _require(
            all(0 < at < 1 or (at >= 1 and float(at).is_integer()) for at in self.at),
            "at",
            self.at,
            "whole numbers of steps, or parts of the run between 0 and 1",
        )
        _require(0 < self.factor_each < 1, "factor_each", self.factor_each, "between 0 and 1")

    def _after(self, step: int, steps: int, history: History) -> float:
        falls = sum(step >= (round(at * steps) if at < 1 else at) for at in self.at)
        return self.factor_each**falls


@final
@dataclass(frozen=True, kw_only=True)
class Plateau(Warmup):
    """Falls by a factor whenever the validation loss has stopped falling."""

    name: ClassVar[str] = "plateau"

    factor_each: float = 0.25
    """What the learning rate is multiplied by each time."""
    patience: int = 0
    """Evaluations without a new lowest loss that are passed over before it falls."""

    def __post_init__(self) -> None:
        Warmup.__post_init__(self)
        _require(0 < self.factor_each < 1, "factor_each", self.factor_each, "between 0 and 1")
        _require(self.patience >= 0, "patience", self.patience, "0 or more")

    def _after(self, step: int, steps: int, history: History) -> float:
        best, waited, falls = math.inf, 0, 0
        for done, loss in history:
            if done > step:
                break
            if loss < best:
                best, waited = loss, 0
            elif waited == self.patience:
                waited, falls = 0, falls + 1
            else:
                waited += 1
        return self.factor_each**falls


Schedule = Constant | Cosine | Linear | WarmupStableDecay | Steps | Plateau

SCHEDULES: dict[str, Schedule] = {
    Cosine.name: Cosine(),
    Linear.name: Linear(),
    WarmupStableDecay.name: WarmupStableDecay(),
    Steps.name: Steps(),
    Plateau.name: Plateau(),
    Constant.name: Constant(),
}
"""Every schedule by its name."""
