"""Learning-rate schedules as data: what part of its full value a rollout's learning rate is.

Each network has one of its own. All of them can begin with a linear growth over some rollouts.
"""

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch

from psgd_optim.types import InputError


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise InputError(f"Got {name} = {value} for a learning-rate schedule; give {allowed}.")


@dataclass(frozen=True, kw_only=True)
class _Schedule(abc.ABC):
    """Linear growth over the first rollouts, times what a concrete schedule says."""

    warmup: int = 0
    """Rollouts in which the learning rate grows linearly from almost 0 to its full value."""

    def __post_init__(self) -> None:
        _require(self.warmup >= 0, "warmup", self.warmup, "0 or more")

    def factor(self, iteration: int, iterations: int, adapted: float) -> float:
        """Return the learning rate of an update as a part of its full value.

        Args:
            iteration: Updates done before it.
            iterations: Of the whole run.
            adapted: What `adapt` has made of 1 so far.
        """
        growth = min(1.0, (iteration + 1) / (self.warmup + 1))
        return growth * self._full(iteration / iterations, adapted)

    @abc.abstractmethod
    def _full(self, progress: float, adapted: float) -> float:
        """Return the factor without the growth; `progress` is the share of the run that is over."""

    def adapt(self, adapted: float, kl: float) -> float:
        """Return the adapted factor after an update that moved the policy by `kl` nats."""
        return adapted


@final
@dataclass(frozen=True, kw_only=True)
class Constant(_Schedule):
    """The full learning rate to the end."""

    name: ClassVar[str] = "constant"

    def _full(self, progress: float, adapted: float) -> float:
        return 1.0


@final
@dataclass(frozen=True, kw_only=True)
class Linear(_Schedule):
    """A straight line over the whole run."""

    name: ClassVar[str] = "linear"

    final: float = 0.0
    """Part of the learning rate that is left at the end."""

    def __post_init__(self) -> None:
        _Schedule.__post_init__(self)
        _require(0 <= self.final <= 1, "final", self.final, "a number from 0 to 1")

    def _full(self, progress: float, adapted: float) -> float:
        return 1 - (1 - self.final) * progress


@final
@dataclass(frozen=True, kw_only=True)
class KLAdaptive(_Schedule):
    """Falls after an update that moved the policy too far, grows after one that hardly did."""

    name: ClassVar[str] = "kl"

    target: float = 0.01
    """What an update shall move the policy by, in nats; half and twice as much change nothing."""
    change: float = 1.5
    """What the learning rate is multiplied or divided by."""
    least: float = 0.01
    """Smallest part of the learning rate."""
    most: float = 10.0
    """Largest part of it."""

    def __post_init__(self) -> None:
        _Schedule.__post_init__(self)
        _require(self.target > 0, "target", self.target, "a number above 0")
        _require(self.change > 1, "change", self.change, "a number above 1")
        _require(0 < self.least <= 1, "least", self.least, "a number above 0 and up to 1")
        _require(self.most >= 1, "most", self.most, "a number of at least 1")

    def _full(self, progress: float, adapted: float) -> float:
        return adapted

    def adapt(self, adapted: float, kl: float) -> float:
        """Return the adapted factor after an update that moved the policy by `kl` nats."""
        if kl > 2 * self.target:
            return max(adapted / self.change, self.least)
        if kl < self.target / 2:
            return min(adapted * self.change, self.most)
        return adapted


Schedule = Constant | Linear | KLAdaptive

SCHEDULES: dict[str, Schedule] = {
    Linear.name: Linear(),
    Constant.name: Constant(),
    KLAdaptive.name: KLAdaptive(),
}
"""Every schedule by its name."""


class LearningRate:
    """Sets one optimizer's learning rates as its schedule says.

    Args:
        optimizer: Its learning rates are the full ones.
        schedule: Of all its parameter groups.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Schedule) -> None:
        self._optimizer = optimizer
        self._schedule = schedule
        self._full = [group["lr"] for group in optimizer.param_groups]
        self._adapted = 1.0

    def set(self, iteration: int, iterations: int) -> float:
        """Set the learning rates of an update.

        Args:
            iteration: Updates done before it.
            iterations: Of the whole run.

        Returns:
            The learning rate of the first group.
        """
        factor = self._schedule.factor(iteration, iterations, self._adapted)
        for group, lr in zip(self._optimizer.param_groups, self._full, strict=True):
            group["lr"] = lr * factor
        return float(self._optimizer.param_groups[0]["lr"])

    def adapt(self, kl: float) -> None:
        """Take in by how many nats an update moved the policy."""
        self._adapted = self._schedule.adapt(self._adapted, kl)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next learning rate depends on beside the progress."""
        return {"adapted": self._adapted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._adapted = state["adapted"]
