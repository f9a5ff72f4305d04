"""One token per byte of the text's UTF-8."""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from psgd_lm.tokenizer.base import stream_bytes, utf8


class ByteTokenizer:
    """One token per byte of the text's UTF-8: no alphabet, so nothing is ever unknown."""

    name: ClassVar[str] = "byte"
    vocab_size = 256
    start_token = ord("\n")

    def encode(self, text: str) -> Tensor:
        """Return the bytes of a text of Unicode characters, (n,) int64."""
        content = utf8(text)
        if not content:
            return torch.empty(0, dtype=torch.int64)
        return torch.frombuffer(bytearray(content), dtype=torch.uint8).long()

    def last_cut(self, text: str) -> int:
        """Return the text's length: bytes do not depend on each other."""
        return len(text)

    def stream(self, tokens: Iterable[int], after: str = "") -> Iterator[str]:
        """Yield characters as their bytes complete them; wrong bytes become U+FFFD."""
        return stream_bytes(bytes([token]) for token in tokens)

    def byte_lengths(self) -> Tensor:
        """Return 1 for every token, (256,) int64."""
        return torch.ones(self.vocab_size, dtype=torch.int64)

    def to_dict(self) -> dict[str, Any]:
        """Return the name."""
        return {"name": self.name}
