"""Text to token ids and back: one token per character, or one per UTF-8 byte.

A tokenizer is saved as JSON and identified by the SHA-256 of that JSON. It knows how many bytes
each token stands for, so that losses of different tokenizers compare in bits per byte.
"""

import codecs
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from psgd_optim.types import InputError

CODE_POINTS = 0x110000


class Tokenizer(Protocol):
    """What the trainer needs of a tokenizer."""

    name: ClassVar[str]

    @property
    def vocab_size(self) -> int:
        """Number of different tokens."""

    @property
    def start_token(self) -> int:
        """The token to begin a text with when there is no prompt: a line end if there is one."""

    def encode(self, text: str) -> Tensor:
        """Return the ids of a text, (n,) int64."""

    def stream(self, tokens: Iterable[int]) -> Iterator[str]:
        """Yield the text of a run of tokens as soon as each piece of it is complete."""

    def byte_lengths(self) -> Tensor:
        """Return how many UTF-8 bytes each token stands for, (vocab_size,) int64."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything about the tokenizer as JSON values."""


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
        return cls("".join(sorted(set(text))))

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
        if not text:
            return torch.empty(0, dtype=torch.int64)
        # Surrogates pass here only to be reported below like any other unknown character.
        codes = torch.frombuffer(
            bytearray(text.encode("utf-32-le", "surrogatepass")), dtype=torch.int32
        )
        ids = self._ids[codes]
        unknown = (ids < 0).nonzero()
        if len(unknown):
            at = int(unknown[0])
            shown = self._alphabet if self.vocab_size <= 128 else self._alphabet[:128] + "..."
            raise InputError(
                f"The character {text[at]!r} at position {at} is not in the model's alphabet; "
                f"use only {shown!r}."
            )
        return ids

    def stream(self, tokens: Iterable[int]) -> Iterator[str]:
        """Yield one character per token."""
        for token in tokens:
            yield self._alphabet[token]

    def byte_lengths(self) -> Tensor:
        """Return how many UTF-8 bytes each character takes, (vocab_size,) int64."""
        return torch.tensor([len(character.encode()) for character in self._alphabet])

    def to_dict(self) -> dict[str, Any]:
        """Return the name and the alphabet."""
        return {"name": self.name, "alphabet": self._alphabet}


class ByteTokenizer:
    """One token per byte of the text's UTF-8: no alphabet, so nothing is ever unknown."""

    name: ClassVar[str] = "byte"
    vocab_size = 256
    start_token = ord("\n")

    def encode(self, text: str) -> Tensor:
        """Return the bytes of a text.

        Args:
            text: Any text of Unicode characters.

        Returns:
            (n,) int64, the bytes.

        Raises:
            InputError: If the text has half of a surrogate pair, which is no character.
        """
        try:
            content = text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"The text has half of a surrogate pair ({text[error.start]!r}) at position "
                f"{error.start}, which UTF-8 cannot hold; remove it."
            ) from error
        if not content:
            return torch.empty(0, dtype=torch.int64)
        return torch.frombuffer(bytearray(content), dtype=torch.uint8).long()

    def stream(self, tokens: Iterable[int]) -> Iterator[str]:
        """Yield characters as their bytes complete them; wrong bytes become U+FFFD."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            if piece := decoder.decode(bytes([token])):
                yield piece
        if piece := decoder.decode(b"", final=True):
            yield piece

    def byte_lengths(self) -> Tensor:
        """Return 1 for every token, (256,) int64."""
        return torch.ones(self.vocab_size, dtype=torch.int64)

    def to_dict(self) -> dict[str, Any]:
        """Return the name."""
        return {"name": self.name}


def make_tokenizer(name: str, text: str) -> Tokenizer:
    """Build a tokenizer for a text.

    Args:
        name: `"char"` or `"byte"`.
        text: The whole text, train and validation, so that the latter has no unknown character.

    Returns:
        The tokenizer.
    """
    return CharTokenizer.of(text) if name == CharTokenizer.name else ByteTokenizer()


def tokenizer_from_dict(saved: Mapping[str, Any]) -> Tokenizer:
    """Rebuild a tokenizer.

    Args:
        saved: What its `to_dict` returned.

    Returns:
        The tokenizer.

    Raises:
        InputError: If the kind is not known to this version.
    """
    if saved["name"] == CharTokenizer.name:
        return CharTokenizer(saved["alphabet"])
    if saved["name"] == ByteTokenizer.name:
        return ByteTokenizer()
    raise InputError(
        f"The run has a tokenizer {saved['name']!r}; this version knows char and byte: train again."
    )


def decode(tokenizer: Tokenizer, tokens: Iterable[int]) -> str:
    """Return the text of a run of tokens."""
    return "".join(tokenizer.stream(tokens))


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of a tokenizer's JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(tokenizer.to_dict(), sort_keys=True).encode()).hexdigest()
