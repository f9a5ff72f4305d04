"""The batch of every step: a pure function of the seed and the step.

A resumed run needs no data position, and nothing else that draws random numbers changes the order
of the data.
"""

import abc
import hashlib
from typing import NamedTuple, final

import torch
from torch import Tensor

from psgd_lm.tokens import Tokens


class Batch(NamedTuple):
    """What one step trains on.

    Attributes:
        inputs: (B, T) int64.
        targets: (B, T) int64, the token after each input.
        begins: Whether the rows begin new texts, so that no memory goes on.
        lr_factor: What the learning rate is scaled by for this batch's length.
    """

    inputs: Tensor
    targets: Tensor
    begins: bool = True
    lr_factor: float = 1.0


class Batches(abc.ABC):
    """The batches of a run."""

    @abc.abstractmethod
    def at(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0: always the same one."""


@final
class Windows(Batches):
    """Windows of one length, drawn with replacement from the whole text.

    Args:
        tokens: The text, longer than a window's inputs.
        context: Inputs per window.
        batch_size: Windows per step.
        seed: The run's seed.
    """

    def __init__(self, tokens: Tokens, *, context: int, batch_size: int, seed: int) -> None:
        self.tokens = tokens
        self.context = context
        self.batch_size = batch_size
        self.seed = seed

    def at(self, step: int) -> Batch:
        """Return the windows of a step, (batch_size, context)."""
        # Drawn on the CPU whatever the device, so that all devices see the same data.
        generator = stream_generator(self.seed, step)
        starts = torch.randint(
            len(self.tokens) - self.context, (self.batch_size,), generator=generator
        )
        windows = self.tokens.windows(starts, self.context + 1)
        return Batch(windows[:, :-1], windows[:, 1:])


def stream_generator(seed: int, step: int) -> torch.Generator:
    """Return a generator for the data of one step or epoch."""
    # Hashing keeps the streams of neighbouring seeds and steps apart: (0, 1) is not (1, 0).
    digest = hashlib.sha256(f"{seed} {step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
