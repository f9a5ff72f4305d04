"""Token ids in files: shards with a header, and a run of them read as one text.

A shard is a header of 88 bytes, little-endian, and the ids:

    8 s   magic, "PSGDTOKS"        8 u   number of tokens
    4 u   version, 1               32 s  SHA-256 of the tokenizer
    4 u   bytes per token          32 s  SHA-256 of the ids
"""

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from psgd_optim.types import InputError

HEADER = struct.Struct("<8sIIQ32s32s")
MAGIC = b"PSGDTOKS"
VERSION = 1
SUFFIX = ".tokens"
CHECKED_BYTES = 2**26
"""Files up to this size are compared with their checksum whenever they are opened."""

DTYPES: dict[int, np.dtype[np.generic]] = {size: np.dtype(f"<u{size}") for size in (1, 2, 4)}
"""By the number of bytes of a token."""


def token_bytes(vocab_size: int, asked: int | None = None) -> int:
    """Return how many bytes a token takes.

    Args:
        vocab_size: Tokens in the vocabulary.
        asked: The number to take; None for the least.

    Returns:
        1, 2 or 4.

    Raises:
        InputError: If the vocabulary does not fit.
    """
    least = next(size for size in DTYPES if vocab_size <= 256**size)
    if asked and asked < least:
        raise InputError(
            f"The vocabulary has {vocab_size:,} tokens, uint{8 * asked} holds {256**asked:,}; "
            f"use uint{8 * least}."
        )
    return asked or least


@dataclass(frozen=True)
class Segment:
    """A piece of a file that holds ids and nothing else.

    Attributes:
        path: The file.
        offset: Bytes before the ids.
        count: How many ids.
        size: Bytes of each.
    """

    path: Path
    offset: int
    count: int
    size: int


@dataclass(frozen=True)
class Header:
    """A shard's header after its magic and version."""

    size: int
    count: int
    tokenizer_sha256: bytes
    sha256: bytes


def read_header(path: Path) -> Header:
    """Read and check the header of a shard.

    Args:
        path: The shard.

    Returns:
        The header.

    Raises:
        InputError: If the file is no shard, of another version or type, or cut off.
    """
    again = "prepare the text again"
    try:
        with path.open("rb") as file:
            content = file.read(HEADER.size)
        length = path.stat().st_size
    except OSError as error:
        raise InputError(f"Cannot read the shard {path} ({error.strerror}); {again}.") from error
    if not content.startswith(MAGIC) or len(content) < HEADER.size:
        raise InputError(f"{path} is not a shard of tokens or cut off in its header; {again}.")
    _, version, *fields = HEADER.unpack(content)
    header = Header(*fields)
    if version != VERSION:
        raise InputError(f"{path} is a shard of version {version}, not {VERSION}; {again}.")
    if header.size not in DTYPES:
        raise InputError(f"{path} has {header.size} bytes per token, not 1, 2 or 4; {again}.")
    whole = HEADER.size + header.count * header.size
    if length != whole:
        raise InputError(f"{path} has {length:,} bytes instead of {whole:,}; {again}.")
    return header


def open_shard(path: Path, tokenizer_sha256: str, vocab_size: int) -> Segment:
    """Return the ids of a shard, checked as far as that is cheap.

    Args:
        path: The shard.
        tokenizer_sha256: Of the tokenizer that it must have been written with.
        vocab_size: Of the same.

    Returns:
        Where the ids lie.

    Raises:
        InputError: If the shard is damaged, or of another tokenizer or vocabulary.
    """
    header = read_header(path)
    found = header.tokenizer_sha256.hex()
    if found != tokenizer_sha256:
        raise InputError(
            f"{path} was written with the tokenizer of SHA-256 {found[:12]}, not "
            f"{tokenizer_sha256[:12]}; prepare the text again."
        )
    token_bytes(vocab_size, header.size)
    if header.count * header.size <= CHECKED_BYTES:
        verify_shard(path)
    return Segment(path, HEADER.size, header.count, header.size)


def verify_shard(path: Path) -> None:
    """Compare the ids of a shard with its checksum.

    Args:
        path: The shard.

    Raises:
        InputError: If they differ.
    """
    header = read_header(path)
    with path.open("rb") as file:
        file.seek(HEADER.size)
        found = hashlib.file_digest(file, "sha256").digest()
    if found != header.sha256:
        raise InputError(f"{path} does not have the SHA-256 in its header; prepare the text again.")


class ShardWriter:
    """Writes the tokens of one part of a text into shards.

    Args:
        folder: Where they go.
        part: What their names begin with.
        size: Bytes per token.
        tokenizer_sha256: Of the tokenizer.
        most_tokens: In one shard.
    """

    def __init__(
        self, folder: Path, part: str, *, size: int, tokenizer_sha256: str, most_tokens: int
    ) -> None:
        self.count = 0
        self.files: list[str] = []
        self._folder, self._part = folder, part
        self._size, self._most = size, most_tokens
        self._tokenizer = bytes.fromhex(tokenizer_sha256)

    def write(self, runs: Iterable[Tensor]) -> None:
        """Write all tokens of the part.

        Args:
            runs: (n,) int64 each, ids of the vocabulary.

        Raises:
            OSError: If a shard cannot be written; it names the file.
        """
        waiting = _Runs(iter(runs))
        while waiting.has_more():
            name = f"{self._part}-{len(self.files):05d}{SUFFIX}"
            path = self._folder / name
            try:
                self.count += self._write_shard(path, waiting)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
            self.files.append(name)

    def _write_shard(self, path: Path, waiting: "_Runs") -> int:
        """Write one shard; return how many tokens it has."""
        partial = path.with_name(path.name + ".partial")
        digest, count = hashlib.sha256(), 0
        with partial.open("wb") as file:
            file.write(bytes(HEADER.size))
            while count < self._most and (run := waiting.take(self._most - count)) is not None:
                content = run.numpy().astype(DTYPES[self._size]).tobytes()
                digest.update(content)
                file.write(content)
                count += len(run)
            file.seek(0)
            file.write(
                HEADER.pack(MAGIC, VERSION, self._size, count, self._tokenizer, digest.digest())
            )
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        return count


class _Runs:
    """Runs of ids from which any number can be taken."""

    def __init__(self, runs: Iterator[Tensor]) -> None:
        self._runs = runs
        self._rest = torch.empty(0, dtype=torch.int64)

    def has_more(self) -> bool:
        """Tell whether an id is left."""
        while not len(self._rest):
            following = next(self._runs, None)
            if following is None:
                return False
            self._rest = following
        return True

    def take(self, most: int) -> Tensor | None:
        """Return the next ids, as many as there are in one run; None at the end."""
        if not self.has_more():
            return None
        taken, self._rest = self._rest[:most], self._rest[most:]
        return taken
