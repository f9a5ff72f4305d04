"""Texts that are read in pieces: files of any size, compressed ones too, and parts of them."""

import codecs
import gzip
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from psgd_optim.types import InputError

PIECE_BYTES = 2**20

Pieces = Callable[[], Iterator[str]]
"""Reads a text from its beginning, in pieces cut anywhere."""


@dataclass(frozen=True)
class TextFile:
    """A file of UTF-8 text, plain or compressed with xz or gzip (by its suffix).

    Attributes:
        path: Where it lies.
        name: What messages call it.
    """

    path: Path
    name: str

    def pieces(self) -> Iterator[str]:
        """Read the text as it is, line ends included.

        Yields:
            Pieces of about a megabyte.

        Raises:
            InputError: If the file cannot be read, is damaged, or is not UTF-8.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        lines = size = 0
        for content in itertools.chain(self._contents(), [b""]):
            pending = len(decoder.getstate()[0])
            try:
                piece = decoder.decode(content, final=not content)
            except UnicodeDecodeError as error:
                line = lines + error.object.count(b"\n", 0, error.start) + 1
                raise InputError(
                    f"{self.name} is not UTF-8: byte {error.object[error.start]:#04x} in line "
                    f"{line:,}, at byte offset {size - pending + error.start:,}; convert it, for "
                    "example with iconv -t UTF-8."
                ) from error
            lines += content.count(b"\n")
            size += len(content)
            if piece:
                yield piece

    def _contents(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as raw:
                file = _decompressed(raw, self.path.suffix)
                while content := file.read(PIECE_BYTES):
                    yield content
        except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise InputError(
                f"{self.name} is damaged or not compressed as its suffix says "
                f"({type(error).__name__}); restore it from a copy."
            ) from error
        except OSError as error:
            raise InputError(
                f"Cannot read the text {self.name} ({error.strerror}); name a UTF-8 text file."
            ) from error


def _decompressed(raw: IO[bytes], suffix: str) -> IO[bytes] | lzma.LZMAFile | gzip.GzipFile:
    if suffix == ".xz":
        return lzma.LZMAFile(raw)
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)
    return raw


def find_files(inputs: Iterable[str]) -> list[TextFile]:
    """Return the files that were named, and those in folders that were.

    Args:
        inputs: Paths.

    Returns:
        The files, in the order given; those below a folder sorted by their paths, hidden ones
        left out.

    Raises:
        InputError: If a path leads nowhere or a folder has no file.
    """
    files: list[TextFile] = []
    for name in inputs:
        path = Path(name)
        found = [path]
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if _is_text(file, path))
        if not found or not path.exists():
            what = "does not exist" if found else "has no file"
            raise InputError(f"{name} {what}; name text files or folders with some.")
        files += [TextFile(file, str(file)) for file in found]
    return files


def _is_text(file: Path, folder: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.is_file() and not is_hidden


def joined(files: Sequence[TextFile], separator: str | None = None) -> Iterator[str]:
    """Read files one after the other.

    Args:
        files: In their order.
        separator: Put after every file that does not end with it, blanks and line ends aside.

    Yields:
        Pieces.
    """
    for file in files:
        end = ""
        for piece in file.pieces():
            yield piece
            if separator:
                end = (end + piece)[-len(separator) - 64 :]
        if separator and end and not _ends_with(end, separator):
            yield separator


def _ends_with(text: str, separator: str) -> bool:
    """Tell whether a text ends with a separator, be it a line of its own or not."""
    visible = separator.rstrip()
    return text.endswith(separator) or (visible != "" and text.rstrip().endswith(visible))


def section(
    pieces: Iterable[str], first: int, last: int | None = None, *, whole_lines: bool = False
) -> Iterator[str]:
    """Read a part of a text.

    Args:
        pieces: The whole.
        first: Characters before the part.
        last: Characters up to its end; None for all.
        whole_lines: Move both ends behind the next line end.

    Yields:
        Pieces.
    """
    begins = first if first == 0 or not whole_lines else None  # None: not known yet
    ends = None if whole_lines and last else last
    position = 0
    for piece in pieces:
        if begins is None:
            begins = _behind_line(piece, position, first)
        if ends is None and last is not None:
            ends = _behind_line(piece, position, last)
        if begins is not None:
            stop = len(piece) if ends is None else max(0, ends - position)
            if wanted := piece[max(0, begins - position) : stop]:
                yield wanted
        position += len(piece)
        if ends is not None and position >= ends:
            return


def _behind_line(piece: str, position: int, at: int) -> int | None:
    """Return the place behind the first line end at or after a place, if the piece has it.

    A place that follows a line end stays where it is.
    """
    found = piece.find("\n", max(0, at - position - 1))
    return position + found + 1 if found >= 0 else None
