"""Texts prepared by nanoGPT: `train.bin` and `val.bin` of 16-bit tokens, perhaps a `meta.pkl`.

The pickle is read without running anything in it: an alphabet needs no more than what a pickle
can say without naming a class.
"""

import hashlib
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never

from psgd_lm.file_tokens import FileTokens
from psgd_lm.shards import CHECKED_BYTES, Segment
from psgd_lm.tokenizer import CharTokenizer, Tokenizer, load_gpt2
from psgd_optim.types import InputError

TRAIN, VALIDATION, META = "train.bin", "val.bin", "meta.pkl"


@dataclass(frozen=True, kw_only=True)
class NanoGPTText:
    """A folder of nanoGPT's, open for reading."""

    path: Path
    tokenizer: Tokenizer
    train: FileTokens
    validation: FileTokens
    sha256: str
    """Of the two files' sizes and the 64 MiB at both of their ends."""


def is_nanogpt(folder: Path) -> bool:
    """Tell whether a folder has a text prepared by nanoGPT."""
    return (folder / TRAIN).is_file() and (folder / VALIDATION).is_file()


def open_nanogpt(folder: Path, gpt2_files: str | None) -> NanoGPTText:
    """Open a text prepared by nanoGPT.

    Args:
        folder: With the files.
        gpt2_files: Folder with GPT-2's vocabulary, which the tokens are of if there is no
            `meta.pkl`; None for tiktoken's cache.

    Returns:
        The text.
    """
    meta = folder / META
    tokenizer = read_meta(meta) if meta.is_file() else load_gpt2(gpt2_files)
    files = [folder / TRAIN, folder / VALIDATION]
    train, validation = (FileTokens([_segment(file)]) for file in files)
    for file, tokens in zip(files, (train, validation), strict=True):
        _check_ids(file, tokens, tokenizer.vocab_size)
    return NanoGPTText(
        path=folder,
        tokenizer=tokenizer,
        train=train,
        validation=validation,
        sha256=_sha256(files),
    )


def _segment(file: Path) -> Segment:
    size = file.stat().st_size
    if not size or size % 2:
        raise InputError(f"{file} has {size} bytes, no whole number of 16-bit tokens; restore it.")
    return Segment(file, 0, size // 2, 2)


def _check_ids(file: Path, tokens: FileTokens, vocab_size: int) -> None:
    """Refuse ids beyond the vocabulary, as far as looking for them is cheap."""
    seen = min(len(tokens), CHECKED_BYTES // 2)
    largest = max(
        int(tokens.span(first, min(seen, first + 2**20)).max()) for first in range(0, seen, 2**20)
    )
    if largest >= vocab_size:
        raise InputError(
            f"{file} has the token {largest}, its vocabulary {vocab_size} tokens; restore the "
            f"{META} that belongs to it."
        )


def _sha256(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(CHECKED_BYTES))
            file.seek(max(file.tell(), size - CHECKED_BYTES))
            digest.update(file.read())
    return digest.hexdigest()


class _PlainUnpickler(pickle.Unpickler):
    """Reads dicts, lists, tuples, strings and numbers, and refuses whatever names a class."""

    def find_class(self, module_name: str, global_name: str, /) -> Never:
        """Refuse."""
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")

    def persistent_load(self, pid: Any) -> Never:  # noqa: ANN401 -- pickle's signature
        """Refuse."""
        raise pickle.UnpicklingError("it refers to something outside")


def read_meta(path: Path) -> CharTokenizer:
    """Read the alphabet in a `meta.pkl`.

    Args:
        path: The file.

    Returns:
        Its tokenizer.

    Raises:
        InputError: If the file is damaged, has anything but plain values, or no alphabet.
    """
    try:
        with path.open("rb") as file:
            meta = _PlainUnpickler(file).load()
    except Exception as error:
        # A damaged pickle can raise almost anything.
        raise InputError(
            f"{path} is damaged or more than an alphabet ({error}); prepare the text with "
            "scripts/prepare_text.py."
        ) from error
    letters = meta.get("itos") if isinstance(meta, dict) else None
    alphabet = [letters.get(i) for i in range(len(letters))] if isinstance(letters, dict) else []
    if not alphabet or any(not isinstance(c, str) or len(c) != 1 for c in alphabet):
        raise InputError(
            f"{path} has no alphabet of characters (itos); prepare the text with "
            "scripts/prepare_text.py."
        )
    return CharTokenizer("".join(map(str, alphabet)))
