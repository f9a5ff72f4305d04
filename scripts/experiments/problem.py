"""A loss to be minimised, as every experiment with optimizers sees it."""

import abc
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Problem(abc.ABC):
    """One draw of a problem: its parameters at their start, and its losses.

    Everything is a function of the seed that it was made from: two draws with one seed see the
    same start, and the same mini-batch in the same step.
    """

    parameters: Sequence[Tensor]
    """Leaves that require gradients."""
    model: nn.Module | None = None
    """The module that has them, for optimizers that take one."""

    @abc.abstractmethod
    def loss(self, step: int) -> Tensor:
        """Return the loss of a step's mini-batch, 0-D; called again, the same one."""

    @abc.abstractmethod
    def evaluate(self) -> Mapping[str, float]:
        """Return figures without the noise of mini-batches, the study's target among them."""


def generator(seed: int, step: int = 0) -> torch.Generator:
    """Return a generator on the CPU for the start (step 0) or for a step's mini-batch."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) & 0xFFFFFFFFFFFF)
