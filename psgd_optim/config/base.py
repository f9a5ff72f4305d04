"""What every optimizer's configuration does: build itself, and refuse bad settings when made."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from psgd_optim.types import InputError


class Buildable(Protocol):
    """An optimizer as data."""

    name: ClassVar[str]

    @property
    def lr(self) -> float:
        """Step size."""

    @property
    def weight_decay(self) -> float:
        """Decay of the parameters with two or more axes."""

    def build(self, parameters: Sequence[Tensor], seed: int) -> torch.optim.Optimizer:
        """Return the optimizer of some parameters."""


def groups_of(parameters: Sequence[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Return param groups in which parameters with two or more axes decay, and others do not.

    Args:
        parameters: What the optimizer trains.
        weight_decay: The rate.

    Returns:
        One or two groups.
    """
    split = {weight_decay: [p for p in parameters if p.ndim >= 2]}
    split.setdefault(0.0, []).extend(p for p in parameters if p.ndim < 2)
    return [{"params": ps, "weight_decay": decay} for decay, ps in split.items() if ps]


def check(config: Buildable, columns: int = 2) -> None:
    """Refuse settings that the optimizer refuses, before a run has written anything.

    Args:
        config: The settings.
        columns: Of the matrix that an optimizer is built for, to see.

    Raises:
        InputError: If they cannot be used.
    """
    if not 0 < config.lr < math.inf:
        raise InputError(f"{config.name} got lr = {config.lr}; give a number above 0.")
    if not 0 <= config.weight_decay < math.inf:
        raise InputError(
            f"{config.name} got weight_decay = {config.weight_decay}; give a number of at least 0."
        )
    built(config, [torch.zeros(2, columns, requires_grad=True)], 0)


def built(config: Buildable, parameters: Sequence[Tensor], seed: int) -> torch.optim.Optimizer:
    """Build an optimizer; what it refuses is bad input.

    Args:
        config: The settings.
        parameters: What it trains.
        seed: Of its random numbers.

    Returns:
        The optimizer.

    Raises:
        InputError: If the settings, or these parameters with them, cannot be used.
    """
    try:
        return config.build(parameters, seed)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{config.name}: {error}") from error
