"""What every tokenizer is, and what can be done with any of them.

A tokenizer is saved as JSON and identified by the SHA-256 of that JSON. It knows how many bytes
each token stands for, so that losses of different tokenizers compare in bits per byte.
"""

import codecs
import hashlib
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, Protocol

from torch import Tensor

from psgd_optim.types import InputError

LONGEST_PIECE = 2**24
"""Characters without a place to cut that are still encoded as one; more would take the memory."""

BEFORE_BLANK = re.compile(r"\S(?=[ \n])")
"""A character that is no whitespace, before a blank or a line end: no token goes across."""


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

    def last_cut(self, text: str) -> int:
        """Return how much of the beginning of a text can be encoded apart from what follows.

        Args:
            text: The beginning of a text that goes on.

        Returns:
            The largest known position such that the tokens before it and those after it are those
            of the whole text; 0 if none is known.
        """

    def stream(self, tokens: Iterable[int], after: str = "") -> Iterator[str]:
        """Yield the text of a run of tokens as soon as each piece of it is complete.

        Args:
            tokens: The run.
            after: The text that it goes on from, which is not repeated.

        Yields:
            Pieces.
        """

    def byte_lengths(self) -> Tensor:
        """Return how many UTF-8 bytes each token stands for, (vocab_size,) int64."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything about the tokenizer as JSON values."""


def encode_pieces(
    tokenizer: Tokenizer, pieces: Iterable[str], threads: int = 1
) -> Iterator[Tensor]:
    """Encode a text that comes in pieces.

    Args:
        tokenizer: Any.
        pieces: The text, cut anywhere.
        threads: Pieces that are encoded at once; it helps bpe and gpt2, which do not hold Python's
            lock.

    Yields:
        (n,) int64, together the tokens of the whole text.
    """
    texts = _separable(tokenizer, pieces)
    if threads == 1:
        yield from map(tokenizer.encode, texts)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Tensor]] = deque()
        for text in texts:
            waiting.append(pool.submit(tokenizer.encode, text))
            # Enough to keep all threads busy, and no more in memory.
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _separable(tokenizer: Tokenizer, pieces: Iterable[str]) -> Iterator[str]:
    """Cut a text where its tokens do not depend on each other.

    Args:
        tokenizer: Any.
        pieces: The text, cut anywhere.

    Yields:
        Texts to encode one by one.

    Raises:
        InputError: If the text has no place to cut it for longer than memory allows.
    """
    rest = ""
    for piece in pieces:
        text = rest + piece
        cut = tokenizer.last_cut(text)
        if cut:
            yield text[:cut]
        rest = text[cut:]
        if len(rest) > LONGEST_PIECE:
            raise InputError(
                f"The text has {len(rest):,} characters without a blank or a line end "
                f"({rest[:20]!r}...); use the tokenizer char or byte."
            )
    if rest:
        yield rest


def places_from_the_end(text: str, boundary: re.Pattern[str] = BEFORE_BLANK) -> Iterator[int]:
    """Yield the places in a text where a pattern ends, the last first.

    Args:
        text: Any.
        boundary: One character, and what must follow.

    Yields:
        Positions.
    """
    last, size = len(text), 4096
    while last > 0:
        first = max(0, last - size)
        # One more character on the right, for what must follow.
        yield from reversed([m.end() for m in boundary.finditer(text, first, last + 1)])
        last, size = first, 8 * size


def utf8(text: str) -> bytes:
    """Return a text as UTF-8.

    Args:
        text: Any text of Unicode characters.

    Returns:
        Its bytes.

    Raises:
        InputError: If the text has half of a surrogate pair, which is no character.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"The text has half of a surrogate pair ({text[error.start]!r}) at position "
            f"{error.start}, which UTF-8 cannot hold; remove it."
        ) from error


def stream_bytes(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yield characters as their bytes complete them; wrong bytes become U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for content in pieces:
        if piece := decoder.decode(content):
            yield piece
    if piece := decoder.decode(b"", final=True):
        yield piece


def require_ids(name: str, ids: Sequence[object]) -> None:
    """Refuse a saved vocabulary that names a token twice.

    Args:
        name: The tokenizer's.
        ids: Its tokens.

    Raises:
        InputError: If two are equal.
    """
    if len(set(ids)) != len(ids):
        raise InputError(f"The {name} vocabulary has a token twice; restore its file.")


def decode(tokenizer: Tokenizer, tokens: Iterable[int]) -> str:
    """Return the text of a run of tokens."""
    return "".join(tokenizer.stream(tokens))


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of a tokenizer's JSON, in hexadecimal."""
    return saved_sha256(tokenizer.to_dict())


def saved_sha256(saved: Mapping[str, Any]) -> str:
    """Return the same of what its `to_dict` returned, whether it is a tokenizer or not."""
    return hashlib.sha256(json.dumps(saved, sort_keys=True).encode()).hexdigest()
