"""Text of any size into a prepared folder: read in pieces, tokenised, written as shards.

The text is read once to count its characters and to see that all of it is UTF-8, once to learn the
vocabulary where the tokenizer has one of its own, and once to write the tokens. So a split
by fraction falls on the same character as when the text is trained on directly, and memory does
not grow with it. What comes from standard input is first copied beside the output.
"""

import contextlib
import functools
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from psgd_lm.data import in_turn, validation_cut
from psgd_lm.output_folder import replacing, restore
from psgd_lm.prepared import Part, is_prepared, write_prepared
from psgd_lm.shards import ShardWriter, token_bytes
from psgd_lm.text_files import PIECE_BYTES, Pieces, TextFile, find_files, joined, section
from psgd_lm.text_measure import ZLIB_BYTES, TextMeasure
from psgd_lm.tokenizer import (
    Tokenizer,
    TokenizerName,
    TokenizerSettings,
    encode_pieces,
    make_tokenizer,
    tokenizer_sha256,
)
from psgd_optim.tools.runtime import check_threads
from psgd_optim.types import InputError

STANDARD_INPUT = "-"
DTYPE_BYTES = {"auto": None, "uint8": 1, "uint16": 2, "uint32": 4}

Advance = Callable[[int], object]
"""Is told how many more bytes of text have been tokenised."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """A text to prepare, and how."""

    inputs: tuple[str, ...] = ()
    """Text files (also .xz or .gz), folders, whose files are taken in the order of their paths,
    or - for standard input."""
    out: Path = Path("prepared")
    """Folder to write."""
    tokenizer: TokenizerName = "char"
    """One token per char, byte or word, a byte-level bpe learned from the text, or that of gpt2."""
    vocab_size: int | None = None
    """Most tokens of word and bpe; None is every word, or 4096."""
    gpt2_files: str | None = None
    """Folder with GPT-2's r50k_base.tiktoken or vocab.bpe; None is tiktoken's cache."""
    separator: str | None = None
    """Text between documents: put after every file that does not end with it; bpe and gpt2 make
    one token of it wherever it stands. None joins files as they are."""
    validation_fraction: float = 0.1
    """Part of the text for validation, after the training part; ignored with --validation."""
    test_fraction: float = 0.0
    """Part of the text for testing, at its end; ignored with --test."""
    validation: tuple[str, ...] = ()
    """Files or folders of the validation part, instead of a fraction."""
    test: tuple[str, ...] = ()
    """Files or folders of the test part, instead of a fraction."""
    dtype: Literal["auto", "uint8", "uint16", "uint32"] = "auto"
    """Of the tokens in the shards; auto is the narrowest that holds the vocabulary."""
    shard_tokens: int = 100_000_000
    """Most tokens in one file."""
    threads: int = 1
    """Threads that bpe and gpt2 tokenise with; the tokens do not depend on it."""
    overwrite: bool = False
    """Replace a prepared text in the folder."""

    def __post_init__(self) -> None:
        for name in ("validation_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(
                    f"Got {name} {getattr(self, name)}; give --{name.replace('_', '-')} a number "
                    "from 0 to less than 1."
                )
        if self.validation_fraction + self.test_fraction >= 1:
            raise InputError(
                f"Got fractions {self.validation_fraction} and {self.test_fraction}, which leave "
                "no text to train on; lower --validation-fraction or --test-fraction."
            )
        if self.shard_tokens < 1:
            raise InputError(
                f"Got shard_tokens {self.shard_tokens}; give --shard-tokens 1 or more."
            )
        check_threads("--threads", self.threads)
        self.tokenizer_settings()

    def tokenizer_settings(self) -> TokenizerSettings:
        """Return the settings of the tokenizer."""
        return TokenizerSettings(
            name=self.tokenizer,
            vocab_size=self.vocab_size,
            separator=self.separator,
            gpt2_files=self.gpt2_files,
        )


@dataclass(frozen=True, kw_only=True)
class PrepareResult:
    """What has been prepared."""

    out: Path
    vocab_size: int
    parts: Mapping[str, Part]
    seconds: float
    """In which the tokens were made and written, without the reading before."""

    @property
    def tokens(self) -> int:
        """Number of tokens in all parts."""
        return sum(part.tokens for part in self.parts.values())

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of all parts."""
        return sum(part.bytes for part in self.parts.values())


def prepare(
    config: PrepareConfig,
    standard_input: BinaryIO | None = None,
    advance: Advance = lambda count: None,
) -> PrepareResult:
    """Tokenise a text and write it to a folder, whole or not at all.

    Args:
        config: What to prepare.
        standard_input: Where the input `-` is read from.
        advance: Is told of the progress.

    Returns:
        What was written.

    Raises:
        InputError: If the text cannot be read or split, or the folder has something else.
        OSError: If the folder cannot be written; what was there before is as it was.
    """
    out = config.out.resolve()  # what a link leads to, not the link
    restore(out)
    _check_out(config)
    with replacing(out) as folder:
        with contextlib.ExitStack() as stack:
            files = _find_inputs(config, standard_input, folder, stack)
            parts = split(config, files)
            settings = config.tokenizer_settings()
            tokenizer = make_tokenizer(settings, parts["train"](), in_turn(parts))
            begun = time.perf_counter()
            written, zlib_bits = _write_parts(config, parts, tokenizer, folder, advance)
            seconds = time.perf_counter() - begun
        about = {
            "source": ", ".join(config.inputs),
            "files": {
                "inputs": [file.name for file in files],
                "validation": list(config.validation),
                "test": list(config.test),
            },
            "separator": config.separator,
            "zlib_bits_per_byte": zlib_bits,
            "zlib_bytes": min(ZLIB_BYTES, written["validation"].bytes),
            "python": platform.python_version(),
        }
        write_prepared(folder, tokenizer, written, about)
    return PrepareResult(
        out=config.out, vocab_size=tokenizer.vocab_size, parts=written, seconds=seconds
    )


def _check_out(config: PrepareConfig) -> None:
    """Refuse inputs and outputs that exclude each other, before anything is read."""
    out = config.out
    if not config.inputs:
        raise InputError("There is no input; name text files, folders, or - for standard input.")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not is_prepared(out):
            raise InputError(f"{out} exists and is no prepared text; give another --out.")
        if not config.overwrite:
            raise InputError(f"{out} has a prepared text; give --overwrite or another --out.")
    for name in (*config.inputs, *config.validation, *config.test):
        if name != STANDARD_INPUT and Path(name).resolve().is_relative_to(out.resolve()):
            raise InputError(f"The input {name} lies in {out}, which is written; move one of them.")


def _find_inputs(
    config: PrepareConfig,
    standard_input: BinaryIO | None,
    folder: Path,
    stack: contextlib.ExitStack,
) -> list[TextFile]:
    """Return the files that the inputs name; standard input is copied into the folder."""
    files: list[TextFile] = []
    for name in config.inputs:
        if name != STANDARD_INPUT:
            files += find_files([name])
            continue
        if standard_input is None or any(file.name == "standard input" for file in files):
            raise InputError("Got the input - but standard input is read already; name it once.")
        copy = folder / "standard_input.txt"
        stack.callback(copy.unlink)
        _copy(standard_input, copy)
        files.append(TextFile(copy, "standard input"))
    return files


def _copy(source: BinaryIO, path: Path) -> None:
    try:
        with path.open("wb") as file:
            shutil.copyfileobj(source, file, PIECE_BYTES)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def split(config: PrepareConfig, files: list[TextFile]) -> dict[str, Pieces]:
    """Cut a text into its parts.

    Args:
        config: By files or by fractions.
        files: Of the text.

    Returns:
        How to read each part.
    """
    separator = config.separator
    length = sum(map(len, joined(files, separator)))
    validation = 0.0 if config.validation else config.validation_fraction
    test = 0.0 if config.test else config.test_fraction
    first, second = validation_cut(length, validation, test), validation_cut(length, 0.0, test)
    cut = functools.partial(_cut, files, separator, config.tokenizer == "word")
    parts: dict[str, Pieces] = {"train": functools.partial(cut, 0, first)}
    for part, names, ends in (
        ("validation", config.validation, (first, second)),
        ("test", config.test, (second, length) if test else None),
    ):
        if names:
            parts[part] = functools.partial(joined, find_files(names), separator)
        elif ends:
            parts[part] = functools.partial(cut, *ends)
    return parts


def _cut(
    files: list[TextFile], separator: str | None, whole_lines: bool, first: int, last: int
) -> Iterator[str]:
    return section(joined(files, separator), first, last, whole_lines=whole_lines)


def _write_parts(
    config: PrepareConfig,
    parts: Mapping[str, Pieces],
    tokenizer: Tokenizer,
    folder: Path,
    advance: Advance,
) -> tuple[dict[str, Part], float]:
    """Write the shards of all parts; return what they are, and zlib's bits per byte."""
    sha256 = tokenizer_sha256(tokenizer)
    size = token_bytes(tokenizer.vocab_size, DTYPE_BYTES[config.dtype])
    written: dict[str, Part] = {}
    zlib_bits = float("nan")
    for name, pieces in parts.items():
        measure = TextMeasure(with_zlib=name == "validation")
        writer = ShardWriter(
            folder, name, size=size, tokenizer_sha256=sha256, most_tokens=config.shard_tokens
        )
        text = _told(measure, pieces(), advance)
        writer.write(encode_pieces(tokenizer, text, config.threads))
        if not writer.count:
            flags = f"--{name}-fraction or --{name}" if name != "train" else "--validation-fraction"
            raise InputError(f"The {name} part is empty; give more text or change {flags}.")
        written[name] = Part(
            shards=writer.files, tokens=writer.count, bytes=measure.size, sha256=measure.sha256
        )
        if name == "validation":
            zlib_bits = measure.zlib_bits_per_byte
    return written, zlib_bits


def _told(measure: TextMeasure, pieces: Iterator[str], advance: Advance) -> Iterator[str]:
    """Yield the pieces of a text, measuring them and telling of the progress."""
    for piece in pieces:
        before = measure.size
        measure.add(piece)
        advance(measure.size - before)
        yield piece
