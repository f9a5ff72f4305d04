"""Byte-level BPE: tokens of several bytes, joined by rank within the pre-tokens of a pattern.

tiktoken does the work; the ranks are our own, learned from a text, or those of GPT-2.
"""

import base64
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import tiktoken
import torch
from torch import Tensor

from psgd_lm.tokenizer.base import (
    BEFORE_BLANK,
    places_from_the_end,
    require_ids,
    stream_bytes,
    utf8,
)
from psgd_lm.tokenizer.bpe_training import GPT2_PATTERN, train_bpe
from psgd_optim.types import InputError

END_OF_TEXT = "<|endoftext|>"
# No pre-token goes on from a letter to one of these; for scripts that use no blanks.
_SIGNS = r".,;:!?()\[\]{}|<>/=+\"\u3001-\u3011\uff01-\uff0f\uff1a-\uff20"
_BEFORE_SIGN = re.compile(rf"[^\W\d_](?=[{_SIGNS}])")


class BPETokenizer:
    """Bytes joined to tokens by rank.

    Any text is encoded exactly, and every run of bytes has a token for each of them.

    Args:
        tokens: The bytes of each token, in the order of their ids and ranks.
        separator: Text between documents, which becomes one token; None for no such token.
    """

    name: ClassVar[str] = "bpe"

    def __init__(self, tokens: Sequence[bytes], separator: str | None = None) -> None:
        require_ids(self.name, tokens)
        self.tokens = list(tokens)
        self.separator = separator
        special = self._special()
        self._pieces = self.tokens + [text.encode() for text in special]
        self._allowed = {separator} if separator else set[str]()
        self.encoding = tiktoken.Encoding(
            self.name,
            pat_str=GPT2_PATTERN,
            mergeable_ranks={token: i for i, token in enumerate(self.tokens)},
            special_tokens={text: len(self.tokens) + i for i, text in enumerate(special)},
        )

    def _special(self) -> list[str]:
        """Return the texts that are no run of bytes but one token each, after all others."""
        return [self.separator] if self.separator else []

    @classmethod
    def of_pieces(
        cls, pieces: Iterable[str], vocab_size: int, separator: str | None = None
    ) -> "BPETokenizer":
        """Return the tokenizer of a training text.

        Args:
            pieces: The text.
            vocab_size: Most tokens, the 256 bytes and the separator included.
            separator: Text between documents.

        Returns:
            The tokenizer.
        """
        merges = vocab_size - 256 - bool(separator)
        return cls(train_bpe(pieces, merges, separator), separator)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self._pieces)

    @property
    def start_token(self) -> int:
        """The separator, or the line end of a text without one."""
        return len(self.tokens) if self.separator else self.tokens.index(b"\n")

    def encode(self, text: str) -> Tensor:
        """Cut a text into tokens.

        Args:
            text: Any text of Unicode characters.

        Returns:
            (n,) int64, the ids.

        Raises:
            InputError: If the text has a run of whitespace too long for the pattern.
        """
        utf8(text)  # tiktoken would put U+FFFD for half of a surrogate pair
        try:
            ids = self.encoding.encode_to_numpy(
                text, allowed_special=self._allowed, disallowed_special=()
            )
        except ValueError as error:
            raise InputError(
                "The text has a run of some million blanks or line ends, too long for the "
                f"tokenizer {self.name}; remove it or use char or byte."
            ) from error
        return torch.from_numpy(ids.astype("int64"))

    def last_cut(self, text: str) -> int:
        """Return the last place that no token and no separator goes across."""
        # A separator may have begun before the end and go on after it.
        known = text[: len(text) - len(self.separator)] if self.separator else text
        for boundary in (BEFORE_BLANK, _BEFORE_SIGN):
            for place in places_from_the_end(known, boundary):
                if not self._is_in_separator(text, place):
                    return place
        return 0

    def _is_in_separator(self, text: str, place: int) -> bool:
        if not self.separator:
            return False
        reach = len(self.separator) - 1
        return self.separator in text[max(0, place - reach) : place + reach]

    def stream(self, tokens: Iterable[int], after: str = "") -> Iterator[str]:
        """Yield characters as the tokens complete them; wrong bytes become U+FFFD."""
        return stream_bytes(self._pieces[token] for token in tokens)

    def byte_lengths(self) -> Tensor:
        """Return how many bytes each token has, (vocab_size,) int64."""
        return torch.tensor([len(piece) for piece in self._pieces])

    def to_dict(self) -> dict[str, Any]:
        """Return the name, the separator, and the tokens in base64 with blanks between."""
        tokens = " ".join(base64.b64encode(token).decode() for token in self.tokens)
        return {
            "name": self.name,
            "pattern": GPT2_PATTERN,
            "separator": self.separator,
            "tokens": tokens,
        }


def tokens_from_text(saved: str) -> list[bytes]:
    """Return the tokens that `to_dict` wrote."""
    return [base64.b64decode(token) for token in saved.split(" ")]
