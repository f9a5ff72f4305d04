"""One token per character."""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from psgd_optim.types import InputError

CODE_POINTS = 0x110000


class CharTokenizer:
    """One token per character of a fixed alphabet.

    Args:
        alphabet: The characters, whose order gives their ids.
    """

    name: ClassVar[str] = "char"

    def __init__(self, alphabet: str) -> None:
        self._alphabet = alphabet
        codes = [ord(character) for character in alphabet]
        self._ids = torch.full((CODE_POINTS,), -1)
        self._ids[codes] = torch.arange(len(codes))

    @classmethod
    def of(cls, text: str) -> "CharTokenizer":
        """Return the tokenizer whose alphabet is the characters of a text, sorted."""
        return cls.of_pieces([text])

    @classmethod
    def of_pieces(cls, pieces: Iterable[str]) -> "CharTokenizer":
        """Return the tokenizer whose alphabet is the characters of a text in pieces, sorted."""
        seen = torch.zeros(CODE_POINTS, dtype=torch.bool)
        for piece in pieces:
            seen[_code_points(piece)] = True
        return cls("".join(map(chr, seen.nonzero()[:, 0].tolist())))

    @property
    def vocab_size(self) -> int:
        """Number of characters in the alphabet."""
        return len(self._alphabet)

    @property
    def start_token(self) -> int:
        """The line end's id, or 0 in an alphabet without one."""
        return max(self._alphabet.find("\n"), 0)

    def encode(self, text: str) -> Tensor:
        """Look every character up.

        Args:
            text: Any text.

        Returns:
            (n,) int64, the ids.

        Raises:
            InputError: If a character is not in the alphabet.
        """
        ids = self._ids[_code_points(text)]
        if len(ids) and int(ids.min()) < 0:
            at = int((ids < 0).nonzero()[0])
            shown = self._alphabet if self.vocab_size <= 128 else self._alphabet[:128] + "..."
            raise InputError(
                f"The character {text[at]!r} at position {at} is not in the model's alphabet; "
                f"use only {shown!r}."
            )
        return ids

    def last_cut(self, text: str) -> int:
        """Return the text's length: characters do not depend on each other."""
        return len(text)

    def stream(self, tokens: Iterable[int], after: str = "") -> Iterator[str]:
        """Yield one character per token."""
        for token in tokens:
            yield self._alphabet[token]

    def byte_lengths(self) -> Tensor:
        """Return how many UTF-8 bytes each character takes, (vocab_size,) int64."""
        return torch.tensor([len(character.encode()) for character in self._alphabet])

    def to_dict(self) -> dict[str, Any]:
        """Return the name and the alphabet."""
        return {"name": self.name, "alphabet": self._alphabet}


def _code_points(text: str) -> Tensor:
    """Return the code points of a text, (n,) int32."""
    if not text:
        return torch.empty(0, dtype=torch.int32)
    # Surrogates pass here only to be reported like any other unknown character.
    content = bytearray(text.encode("utf-32-le", "surrogatepass"))
    return torch.frombuffer(content, dtype=torch.int32)
