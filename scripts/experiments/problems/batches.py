"""Mini-batches as functions of seed and step: every epoch has an order of its own."""

import math

import torch
from torch import Tensor

from experiments.problem import generator
from psgd_optim.types import InputError


class Batches:
    """Which examples the batch of a step is made of; an epoch has every example once.

    Args:
        count: Number of examples.
        size: Examples in a batch; the last one of an epoch may be smaller.
        seed: Of the orders.

    Raises:
        InputError: If a number is below 1.
    """

    def __init__(self, count: int, size: int, seed: int) -> None:
        if count < 1 or size < 1:
            raise InputError(f"Got {count} examples in batches of {size}; give 1 or more of both.")
        self._count, self._size, self._seed = count, size, seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.long)

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return math.ceil(self._count / self._size)

    def indices(self, step: int) -> Tensor:
        """Return the examples of a step, (size,) or fewer; the same when called again."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            # Negative numbers: those from 0 on are of the start and of the steps' own noise.
            order = generator(self._seed, -2 - epoch)
            self._epoch, self._order = epoch, torch.randperm(self._count, generator=order)
        return self._order[place * self._size : (place + 1) * self._size]
