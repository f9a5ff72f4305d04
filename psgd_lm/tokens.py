"""A text as token ids, wherever they lie."""

import abc
from typing import final

import torch
from torch import Tensor


class Tokens(abc.ABC):
    """A run of token ids."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return their number."""

    @abc.abstractmethod
    def windows(self, starts: Tensor, length: int) -> Tensor:
        """Read pieces of one length.

        Args:
            starts: (B,) int64, on the CPU, where each begins.
            length: Of each.

        Returns:
            (B, length) int64, on the tokens' device.
        """

    def span(self, first: int, last: int) -> Tensor:
        """Return the ids from one position up to another, (last - first,) int64."""
        return self.windows(torch.tensor([first]), last - first)[0]

    @abc.abstractmethod
    def to(self, device: torch.device) -> "Tokens":
        """Return the same tokens, whose windows come on a device."""


@final
class InMemory(Tokens):
    """Tokens in one tensor.

    Args:
        ids: (n,), of the narrowest integer type.
    """

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def windows(self, starts: Tensor, length: int) -> Tensor:
        """Read pieces of one length."""
        at = starts[:, None] + torch.arange(length)
        return self.ids[at.to(self.ids.device)].long()

    def span(self, first: int, last: int) -> Tensor:
        """Return the ids from one position up to another."""
        return self.ids[first:last].long()

    def to(self, device: torch.device) -> "InMemory":
        """Return the tokens on a device."""
        return InMemory(self.ids.to(device))


def narrowest_dtype(vocab_size: int) -> torch.dtype:
    """Return the smallest integer type that holds every id and can be indexed on all devices."""
    if vocab_size <= 2**8:
        return torch.uint8
    return torch.int16 if vocab_size <= 2**15 else torch.int32
