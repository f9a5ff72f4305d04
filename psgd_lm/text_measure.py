"""What is known of a text that went by in pieces: its size, its hash, what zlib makes of it."""

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Mapping

ZLIB_BYTES = 2**24
"""Bytes at the beginning of a text that zlib is measured on."""


class TextMeasure:
    """Measures a text.

    Args:
        with_zlib: Compress its beginning too.
    """

    def __init__(self, *, with_zlib: bool = False) -> None:
        self.size = 0
        """UTF-8 bytes."""
        self._sha256 = hashlib.sha256()
        self._zlib = zlib.compressobj(9) if with_zlib else None
        self._compressed = 0

    def passing(self, pieces: Iterable[str]) -> Iterator[str]:
        """Yield the pieces of a text, measuring them."""
        for piece in pieces:
            self.add(piece)
            yield piece

    def add(self, piece: str) -> None:
        """Take one more piece into account."""
        content = piece.encode()
        if self._zlib and self.size < ZLIB_BYTES:
            measured = content[: ZLIB_BYTES - self.size]
            self._compressed += len(self._zlib.compress(measured))
        self.size += len(content)
        self._sha256.update(content)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the text as UTF-8, in hexadecimal."""
        return self._sha256.hexdigest()

    @property
    def zlib_bits_per_byte(self) -> float:
        """What zlib makes of the text's beginning at its highest level; NaN if not measured."""
        if self._zlib is None or not self.size:
            return float("nan")
        compressed = self._compressed + len(self._zlib.copy().flush())
        return 8 * compressed / min(self.size, ZLIB_BYTES)


def zlib_bits_per_byte(text: str) -> float:
    """Return what zlib makes of the beginning of a text at its highest level."""
    measure = TextMeasure(with_zlib=True)
    measure.add(text)
    return measure.zlib_bits_per_byte


def combined_sha256(parts: Mapping[str, str]) -> str:
    """Return one SHA-256 for the parts of a text.

    Args:
        parts: Their names and SHA-256.

    Returns:
        In hexadecimal; another when text moves from one part to another.
    """
    lines = "".join(f"{name} {parts[name]}\n" for name in sorted(parts))
    return hashlib.sha256(lines.encode()).hexdigest()
