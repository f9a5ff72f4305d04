"""What can go wrong in a run: numbers that are not finite, steps that do nothing, no memory."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from psgd_optim.types import InputError


class BadStepError(Exception):
    """A step that left something that is not finite.

    Args:
        step: The step's number, counted from 1.
        what: What is not finite, as the subject of a sentence.
    """

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"{what} is not finite")
        self.step = step
        self.what = what


class FiniteGuard:
    """Remembers the first step with a number that is not finite, without waiting for the device.

    Args:
        device: Where the numbers live.
    """

    def __init__(self, device: torch.device) -> None:
        self._first_bad = torch.zeros((), dtype=torch.int64, device=device)  # 0: none

    def watch(self, value: Tensor, step: int) -> None:
        """Note a number of a step.

        Args:
            value: 0-D.
            step: The step's number, counted from 1.
        """
        is_first = (self._first_bad == 0) & ~torch.isfinite(value)
        self._first_bad.masked_fill_(is_first, step)

    def first_bad_step(self) -> int:
        """Wait for the device and return the first bad step, or 0."""
        return int(self._first_bad)

    def forget(self) -> None:
        """Start again, as a run does that goes back to a checkpoint."""
        self._first_bad.zero_()


def is_finite(model: nn.Module) -> bool:
    """Whether every parameter is finite; waits for the device."""
    return bool(torch.stack([p.detach().isfinite().all() for p in model.parameters()]).all())


class Fingerprint:
    """Two sums over a model's parameters, by which a step that did nothing is recognised.

    Args:
        model: As it is now.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = self._sums()

    @torch.no_grad()
    def _sums(self) -> Tensor:
        # One parameter after the other: in double precision all of them would be twice the model.
        sums: list[Tensor] = []
        for p in self._model.parameters():
            x = p.double()
            sums += [x.sum(), x.square().sum()]
        return torch.stack(sums)

    def check_moved(self, steps: int, lr: float) -> None:
        """Refuse to go on with a model that has not changed.

        Args:
            steps: How many should have changed it.
            lr: The learning rate, for the message.

        Raises:
            InputError: If no parameter has changed.
        """
        if torch.equal(self._sums(), self._before):
            raise InputError(
                f"No parameter has changed in the first {steps} steps at a learning rate of {lr:g};"
                " give a larger --optim.lr, or another --precision if that is float16."
            )


OUT_OF_MEMORY = ("not enough memory", "can't allocate memory")
"""What torch says of a CPU that has no memory left, as a RuntimeError of no kind of its own."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an operation failed because the device has no memory left."""
    is_told = any(text in str(error) for text in OUT_OF_MEMORY)
    return is_told or isinstance(error, torch.OutOfMemoryError)


@contextlib.contextmanager
def memory_advice(doing: str, advice: str) -> Iterator[None]:
    """Say which settings to change where memory runs out.

    Args:
        doing: What the block does, behind "Out of memory in".
        advice: What to change, behind "give a smaller".

    Yields:
        Nothing.

    Raises:
        InputError: If the block runs out of memory.
        RuntimeError: Any other one of the block.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"Out of memory in {doing}; give a smaller {advice}.") from error
