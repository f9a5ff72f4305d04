"""Tasks on sequences with two channels, values and marks: addition and delayed XOR.

Shape legend: `T` steps, `B` sequences.
"""

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.problem import Problem, generator

EVALUATION_SEED = 0x5E9
"""Of the fresh sequences that every network is evaluated on; no run has it."""


class Task(abc.ABC):
    """What is to be told from a sequence, and how wrong an answer is."""

    @abc.abstractmethod
    def draw(self, batch: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return sequences (T, B, 2), values and then marks, and targets (B,)."""

    @abc.abstractmethod
    def loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss, 0-D, of answers (B,)."""

    @abc.abstractmethod
    def figures(self, answers: Tensor, targets: Tensor) -> Mapping[str, float]:
        """Return the loss and what else tells how good answers (B,) are."""


@final
@dataclass(frozen=True)
class Addition(Task):
    """The mean of the two marked values, both in the first half of the sequence.

    The best answer that does not look at the sequence is 0, with a mean squared error of 1/6.

    Args:
        shortest: Of a batch, T.
        longest: Every batch has a length of its own, `round(shortest + (longest - shortest) u)`
            with a uniform u; 0 for one length.

    Source: S0 experiment 1, after Hochreiter and Schmidhuber (1997). Deviation: of an odd T the
    middle is never marked.
    """

    shortest: int
    longest: int = 0

    def draw(self, batch: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return sequences of values uniform in [-1, 1) and the means of the marked ones."""
        length = self.shortest
        if self.longest > length:
            spread = (self.longest - length) * float(torch.rand((), generator=source))
            length = round(length + spread)
        values = 2 * torch.rand(length, batch, generator=source) - 1
        first = torch.randint(length // 2, (batch,), generator=source)
        other = torch.randint(length // 2 - 1, (batch,), generator=source)
        inputs, marked = _mark(values, first, other + (other >= first))
        return inputs, marked.mean(dim=0)

    def loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error."""
        return F.mse_loss(answers, targets)

    def figures(self, answers: Tensor, targets: Tensor) -> Mapping[str, float]:
        """Return the loss."""
        return {"loss": float(self.loss(answers, targets))}


@final
@dataclass(frozen=True)
class DelayedXOR(Task):
    """Whether two marked signs differ: one in the first tenth, one in the next four tenths.

    At least half of the sequence follows the second mark. Where T is no multiple of ten, the two
    marks may fall on one place, rarely; the label is -1 then.

    Args:
        length: T.

    Source: S0 experiment 2 and S2 section 5.4, after Hochreiter and Schmidhuber (1997).
    """

    length: int

    def draw(self, batch: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return sequences of signs, and the labels: 1 where the marked signs differ, else -1."""
        values = 2.0 * torch.randint(2, (self.length, batch), generator=source) - 1
        u = self.length * torch.rand(2, batch, generator=source)
        first, second = (0.1 * u[0]).long(), (0.1 * self.length + 0.4 * u[1]).long()
        inputs, marked = _mark(values, first, second)
        return inputs, -marked.prod(dim=0)

    def loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        """Return the mean of `log(1 + exp(-target answer))`; log 2 is chance."""
        return F.softplus(-targets * answers).mean()

    def figures(self, answers: Tensor, targets: Tensor) -> Mapping[str, float]:
        """Return the loss and the share of wrong signs."""
        wrong = (answers * targets <= 0).float().mean()
        return {"loss": float(self.loss(answers, targets)), "error": float(wrong)}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which sequences a network is trained and evaluated on.

    Args:
        task: What is to be told from them.
        batch: Sequences in a step.
        fresh: Sequences that networks are evaluated on, always the same.
        keep: Smallest and largest share of hidden units that dropout keeps before the readout;
            every step has a share between them, and every unit and sequence a coin.
    """

    task: Task
    batch: int
    fresh: int = 2000
    keep: tuple[float, float] = (1.0, 1.0)


@final
class SequenceProblem(Problem):
    """A recurrent network with a linear readout of its last hidden state, on a task.

    Args:
        sampling: The sequences.
        network: Maps (T, B, 2) to hidden states (B, H).
        readout: (1, H + 1), the initial weights and bias of the answer.
        seed: Of the mini-batches.
        device: Where to compute.
    """

    def __init__(
        self,
        sampling: Sampling,
        network: nn.Module,
        readout: Tensor,
        seed: int,
        device: torch.device,
    ) -> None:
        self._sampling, self._seed, self._device = sampling, seed, device
        self.model = network
        self._readout = readout.to(device).requires_grad_()
        self.parameters = [*network.to(device).parameters(), self._readout]
        fresh = sampling.task.draw(sampling.fresh, generator(EVALUATION_SEED))
        self._fresh = tuple(part.to(device) for part in fresh)

    def loss(self, step: int) -> Tensor:
        """Return the loss of fresh sequences, the same ones for one step."""
        source = generator(self._seed, step + 1)
        inputs, targets = (
            x.to(self._device) for x in self._sampling.task.draw(self._sampling.batch, source)
        )
        hidden = self._hidden(inputs)
        least, most = self._sampling.keep
        if least < 1:
            share = least + (most - least) * float(torch.rand((), generator=source))
            kept = torch.rand(hidden.shape, generator=source) < share
            hidden = hidden * (kept / share).to(hidden)
        return self._sampling.task.loss(self._answers(hidden), targets)

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Return the figures of the fresh sequences, without dropout."""
        inputs, targets = self._fresh
        return self._sampling.task.figures(self._answers(self._hidden(inputs)), targets)

    def _hidden(self, inputs: Tensor) -> Tensor:
        assert self.model is not None  # set in the constructor
        hidden: Tensor = self.model(inputs)
        return hidden

    def _answers(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self._readout[:, :-1], self._readout[:, -1])[:, 0]


def _mark(values: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Mark two places of every sequence.

    Args:
        values: (T, B).
        first: (B,), places.
        second: (B,).

    Returns:
        Values and marks (T, B, 2), and the marked values (2, B).
    """
    places = torch.stack((first, second))  # (2, B)
    marks = torch.zeros_like(values).scatter_(0, places, 1.0)
    return torch.stack((values, marks), dim=2), values.gather(0, places)
