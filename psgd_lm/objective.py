"""The loss that a step descends: of a batch in parts, in some precision, with carried memory."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from psgd_lm.batches import Batch
from psgd_lm.language_model import LanguageModel, Memory, Output, token_losses
from psgd_lm.timing import PhaseTimer

Precision = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Objective:
    """The mean loss of a batch's tokens, part by part, so that one graph is alive at a time.

    The sum of the parts is the mean over the batch, and what the model adds to regularise itself,
    however the batch is split. A recurrent model goes on from the memory that the last batch left.

    Args:
        model: What is trained.
        micro_batch: Rows in a part; 0 for all at once.
        precision: Of the forward pass; the loss is taken in float32.
        compiled: The model as `torch.compile` made it, if it did.
        timer: Told where a forward pass begins and ends.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        micro_batch: int,
        precision: Precision,
        compiled: Callable[..., Output] | None,
        timer: PhaseTimer,
    ) -> None:
        self.model = model
        self.micro_batch = micro_batch
        self.memories: list[Memory] | None = None
        """Of every part, what the last batch left; None where a text begins."""
        self._dtype = DTYPES.get(precision)
        self._compiled = compiled
        self._timer = timer

    def evaluation(self, batch: Batch, *, twice: bool = False) -> "BatchLoss":
        """Return the loss of a batch, to be evaluated as often as an optimizer likes.

        Args:
            batch: On the model's device.
            twice: Whether a part must be differentiable twice.

        Returns:
            The evaluation.
        """
        return BatchLoss(self, batch, twice=twice)

    def advance(self, evaluated: "BatchLoss") -> None:
        """Carry on the memory that a batch left."""
        if self.model.is_recurrent:
            self.memories = evaluated.memories

    def leave_out(self, batch: Batch) -> None:
        """Go past a batch without training on it."""
        if batch.begins:
            self.memories = None

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        return nullcontext() if self._dtype is None else torch.autocast(device.type, self._dtype)

    def _kernels(self, *, twice: bool) -> AbstractContextManager[object]:
        return self.model.twice_differentiable() if twice else nullcontext()

    def part(
        self, inputs: Tensor, targets: Tensor, memory: Memory | None, *, twice: bool
    ) -> tuple[Tensor, Tensor | None, Memory | None]:
        """Return the sum of a part's losses, the model's penalty, and the memory it leaves."""
        model = self.model if twice or self._compiled is None else self._compiled
        with self._timer.phase("forward"):
            with self._autocast(inputs.device), self._kernels(twice=twice):
                output = model(inputs) if memory is None else model(inputs, memory)
            logits = output.logits
            # Half precision has 8 or 11 bits: a sum of losses taken in it moves in steps.
            if logits.dtype in DTYPES.values():
                logits = logits.float()
            return token_losses(logits, targets).sum(), output.penalty, output.memory


class BatchLoss:
    """The loss of one batch; every call is an evaluation of the same one.

    Args:
        objective: Evaluates the parts.
        batch: What they are parts of.
        twice: Whether a part must be differentiable twice.
    """

    def __init__(self, objective: Objective, batch: Batch, *, twice: bool) -> None:
        self.value: Tensor | None = None
        """0-D, the mean loss of the tokens at the first evaluation, without penalty and graph."""
        self.memories: list[Memory] = []
        """What the parts leave to the next batch, without graphs."""
        self._objective = objective
        self._batch = batch
        self._twice = twice

    def __call__(self) -> Iterator[Tensor]:
        """Yield the parts of the loss, 0-D, with their graphs."""
        inputs, targets, begins, _ = self._batch
        objective = self._objective
        size = objective.micro_batch or len(inputs)
        parts = list(zip(torch.split(inputs, size), torch.split(targets, size), strict=True))
        memories = self._memories([len(rows) for rows, _ in parts], begins=begins)
        is_first = self.value is None
        total = torch.zeros((), device=inputs.device)
        for (rows, words), memory in zip(parts, memories, strict=True):
            losses, penalty, left = objective.part(rows, words, memory, twice=self._twice)
            loss = losses / targets.numel()
            total = total + loss.detach()
            # Later evaluations may be of moved parameters; the memory is that of the first.
            if is_first and left is not None:
                self.memories.append(tuple(x.detach() for x in left))
            if penalty is not None:
                loss = loss + penalty * (len(rows) / len(inputs))
            del losses, penalty, left  # or they would keep this graph while the next one is built
            yield loss
            del loss
        if is_first:
            self.value = total

    def _memories(self, sizes: list[int], *, begins: bool) -> list[Memory] | list[None]:
        """Return the memory that every part goes on from."""
        objective = self._objective
        if not objective.model.is_recurrent:
            return [None] * len(sizes)
        if begins or objective.memories is None:
            return [objective.model.empty_memory(size) for size in sizes]
        return objective.memories
