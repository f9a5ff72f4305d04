"""The batch of every step: a pure function of the seed and the step.

A resumed run needs no data position, and nothing else that draws random numbers changes the order
of the data.
"""

import abc
import bisect
import hashlib
from typing import NamedTuple, final

import torch
from torch import Tensor

from psgd_lm.tokens import Tokens
from psgd_optim.types import InputError


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

    @abc.abstractmethod
    def steps_in(self, epochs: float) -> int:
        """Return the number of steps that read the text so many times."""

    @abc.abstractmethod
    def is_whole(self, steps: int) -> bool:
        """Return whether so many steps are whole epochs."""


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

    def steps_in(self, epochs: float) -> int:
        """Return the number of steps with as many tokens as the text has, so many times."""
        return max(1, round(epochs * (len(self.tokens) - 1) / (self.batch_size * self.context)))

    def is_whole(self, steps: int) -> bool:
        """Return whether so many steps are whole epochs."""
        return steps % self.steps_in(1) == 0


SHORTEST = 5
"""Of the batches of varying length."""
SPREAD = 5.0
"""Standard deviation of their length."""
HALVED = 0.05
"""Part of them that is about half as long."""


@final
class Streams(Batches):
    """Running text: `rows` streams side by side, read once per epoch, one batch after the other.

    The text is cut into `rows` equal parts; fewer than `rows` tokens at its end are left out. A
    batch is the next piece of every part, so that a recurrent model's memory goes on from batch to
    batch until the next epoch begins.

    Args:
        tokens: The text, with two tokens or more per row.
        rows: Streams.
        context: Tokens per batch and row; the last batch of an epoch is shorter.
        seed: The run's seed.
        is_variable: Draw the length of every batch anew: normal about the context, or in one of
            twenty batches about half of it, so that the borders fall elsewhere in every epoch.
            The learning rate grows and falls with the length.

    Raises:
        InputError: If the text is too short for the rows.

    Source: AWD-LSTM (arXiv:1708.02182), section 4.1. Deviation: lengths have an upper bound of
    twice the context.
    """

    def __init__(
        self, tokens: Tokens, *, rows: int, context: int, seed: int, is_variable: bool
    ) -> None:
        self.tokens = tokens
        self.context = context
        self.seed = seed
        self.is_variable = is_variable
        self._length = (len(tokens) - 1) // rows  # of a row's inputs
        if self._length < 1:
            raise InputError(
                f"The text has {len(tokens)} tokens, {rows} rows of running text take "
                f"{rows + 1} or more; give a longer text or a smaller --batch-size."
            )
        self._starts = torch.arange(rows) * self._length  # (rows,)
        self._first_steps = [0]  # of every epoch whose plan was needed, and of the next one
        self._plan: tuple[int, Tensor] = (-1, torch.empty(0))  # an epoch and its borders

    def at(self, step: int) -> Batch:
        """Return the piece of every stream that a step reads, (rows, up to twice the context)."""
        epoch, index = self.position(step)
        borders = self._borders(epoch)
        first, last = int(borders[index]), int(borders[index + 1])
        windows = self.tokens.windows(self._starts + first, last - first + 1)
        return Batch(
            windows[:, :-1],
            windows[:, 1:],
            begins=index == 0,
            lr_factor=(last - first) / self.context,
        )

    def position(self, step: int) -> tuple[int, int]:
        """Return the epoch of a step and its place there, both counted from 0."""
        while self._first_steps[-1] <= step:
            epoch = len(self._first_steps) - 1
            self._first_steps.append(self._first_steps[-1] + len(self._borders(epoch)) - 1)
        epoch = bisect.bisect_right(self._first_steps, step) - 1
        return epoch, step - self._first_steps[epoch]

    def steps_in(self, epochs: float) -> int:
        """Return the number of steps that a number of epochs takes."""
        whole = int(epochs)
        while len(self._first_steps) <= whole + 1:
            self.position(self._first_steps[-1])
        first, after = self._first_steps[whole : whole + 2]
        return first + round((epochs - whole) * (after - first))

    def is_whole(self, steps: int) -> bool:
        """Return whether so many steps are whole epochs."""
        return self.position(steps)[1] == 0

    def _borders(self, epoch: int) -> Tensor:
        """Return where the batches of an epoch begin and end, (batches + 1,)."""
        if self._plan[0] != epoch:
            ends = self._lengths(epoch).cumsum(0)
            inner = ends[ends < self._length]
            borders = torch.cat([torch.tensor([0]), inner, torch.tensor([self._length])])
            self._plan = (epoch, borders)
        return self._plan[1]

    def _lengths(self, epoch: int) -> Tensor:
        """Return lengths of batches, (n,), whose sum is the epoch's or more."""
        if not self.is_variable:
            return torch.full((-(-self._length // self.context),), self.context)
        generator = stream_generator(self.seed, epoch)
        shortest = min(SHORTEST, self.context)
        most = -(-self._length // shortest)
        is_short = torch.rand(most, generator=generator) < HALVED
        centre = torch.where(is_short, self.context / 2, float(self.context))
        lengths = centre + SPREAD * torch.randn(most, generator=generator)
        return lengths.long().clamp(shortest, 2 * self.context)


def stream_generator(seed: int, step: int) -> torch.Generator:
    """Return a generator for the data of one step or epoch."""
    # Hashing keeps the streams of neighbouring seeds and steps apart: (0, 1) is not (1, 0).
    digest = hashlib.sha256(f"{seed} {step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
