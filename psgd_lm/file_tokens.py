"""Tokens in files, read where they are needed."""

import os
import weakref
from collections.abc import Sequence
from itertools import accumulate
from typing import final

import numpy as np
import torch
from torch import Tensor

from psgd_lm.shards import DTYPES, Segment
from psgd_lm.tokens import Tokens
from psgd_optim.types import InputError


@final
class FileTokens(Tokens):
    """Pieces of files as one run of tokens.

    Windows are read from the files: the operating system keeps what is read often, and the
    process does not grow with what it has read, as it would with mapped memory.

    Args:
        segments: In their order.
        device: Of the windows.
    """

    def __init__(self, segments: Sequence[Segment], device: torch.device | None = None) -> None:
        self._segments = [_Open(segment) for segment in segments]
        self._ends = np.array(list(accumulate(segment.count for segment in segments)))
        self._device = device or torch.device("cpu")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def windows(self, starts: Tensor, length: int) -> Tensor:
        """Read pieces of one length."""
        ids = np.empty((len(starts), length), dtype=np.int64)
        for row, start in zip(ids, starts.tolist(), strict=True):
            self._read(row, start)
        return torch.from_numpy(ids).to(self._device)

    def _read(self, row: "np.ndarray[tuple[int], np.dtype[np.int64]]", start: int) -> None:
        """Fill a row with the ids from a position on."""
        filled = 0
        which = int(np.searchsorted(self._ends, start, side="right"))
        while filled < len(row):
            segment = self._segments[which]
            inside = start + filled - (int(self._ends[which]) - segment.count)
            wanted = min(len(row) - filled, segment.count - inside)
            row[filled : filled + wanted] = segment.read(inside, wanted)
            filled += wanted
            which += 1

    def to(self, device: torch.device) -> "FileTokens":
        """Return the tokens of the same files, whose windows come on a device."""
        other = FileTokens((), device)
        other._segments, other._ends = self._segments, self._ends
        return other


class _Open:
    """A segment whose file is open as long as somebody has it."""

    def __init__(self, segment: Segment) -> None:
        self.count = segment.count
        self._segment = segment
        try:
            self._file = os.open(segment.path, os.O_RDONLY)
        except OSError as error:
            raise InputError(
                f"Cannot read the tokens {segment.path} ({error.strerror}); restore the file."
            ) from error
        weakref.finalize(self, os.close, self._file)

    def read(self, first: int, count: int) -> "np.ndarray[tuple[int], np.dtype[np.generic]]":
        """Return ids from a position on, of the file's type."""
        at = self._segment.offset + first * self._segment.size
        # Reading at a place leaves no position behind: threads may read at once.
        content = os.pread(self._file, count * self._segment.size, at)
        return np.frombuffer(content, DTYPES[self._segment.size])
