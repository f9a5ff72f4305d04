"""A tokenised text in its parts, from wherever it lies."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from psgd_lm.corpus import load_corpus
from psgd_lm.nanogpt import is_nanogpt, open_nanogpt
from psgd_lm.prepared import is_prepared, open_prepared
from psgd_lm.text_files import Pieces, TextFile, section
from psgd_lm.text_measure import TextMeasure, combined_sha256, zlib_bits_per_byte
from psgd_lm.tokenizer import (
    Tokenizer,
    TokenizerName,
    TokenizerSettings,
    decode,
    encode_pieces,
    make_tokenizer,
)
from psgd_lm.tokens import InMemory, Tokens, narrowest_dtype
from psgd_optim.types import InputError

LAYOUT = {"train": ("train",), "validation": ("valid", "validation", "val"), "test": ("test",)}
"""What the files of a text in parts are called, before `.txt`, `.txt.xz` or `.txt.gz`."""
ZLIB_TOKENS = 2**20
"""Tokens whose text zlib is measured on where the text itself is not there."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text, cut into which tokens."""

    path: str | None = None
    """A UTF-8 text file, also .xz or .gz; a folder that prepare_text.py wrote; a folder with
    train.txt, valid.txt and test.txt; or a folder of nanoGPT's with train.bin and val.bin. None is
    the embedded corpus (Python's own help texts)."""
    tokenizer: Literal["auto"] | TokenizerName = "auto"
    """One token per char, byte or word, a byte-level bpe learned from the text, or that of gpt2.
    auto is what a prepared text has, and char for any other."""
    vocab_size: int | None = None
    """Most tokens of word and bpe; None is every word, or 4096."""
    separator: str | None = None
    """Text between documents, of which bpe and gpt2 make one token; prepared texts have theirs."""
    gpt2_files: str | None = None
    """Folder with GPT-2's r50k_base.tiktoken or vocab.bpe; None is tiktoken's cache."""
    validation_fraction: float = 0.1
    """Part of a text in one file, at its end, that is only evaluated on; between 0 and 1."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise InputError(
                f"Got validation_fraction {self.validation_fraction}; give "
                "--data.validation-fraction a number between 0 and 1."
            )
        if self.tokenizer != "auto":
            self.tokenizer_settings()

    def tokenizer_settings(self) -> TokenizerSettings:
        """Return the settings of the tokenizer that a text of no other gets."""
        return TokenizerSettings(
            name="char" if self.tokenizer == "auto" else self.tokenizer,
            vocab_size=self.vocab_size,
            separator=self.separator,
            gpt2_files=self.gpt2_files,
        )


@dataclass(frozen=True, kw_only=True)
class TextData:
    """A text, its tokenizer, and the tokens of its parts."""

    source: str
    """Where it comes from: a module's name, or a path."""
    sha256: str
    """Of the text, in hexadecimal: what a run recognises its text by."""
    provenance: Mapping[str, Any]
    """What a run records about its text, as JSON values."""
    tokenizer: Tokenizer
    train: Tokens
    validation: Tokens
    test: Tokens | None
    """A part that nothing is chosen by, if the text has one."""
    zlib_bits_per_byte: float
    """What zlib makes of the validation part at its highest level: a floor that a model beats.
    Of a long part only the beginning is taken."""


def load_data(config: DataConfig, context: int) -> TextData:
    """Read, split and tokenise a text.

    Args:
        config: Which text, and how.
        context: Tokens that the model sees at once.

    Returns:
        The tokens; windows of them come on the CPU.

    Raises:
        InputError: If the text cannot be read, or a part of it is not longer than one context.
    """
    folder = Path(config.path) if config.path and Path(config.path).is_dir() else None
    if folder is None:
        data = _from_text(config)
    elif is_prepared(folder):
        data = _from_prepared(config, folder)
    elif is_nanogpt(folder):
        data = _from_nanogpt(config, folder)
    else:
        data = _from_parts(config, folder)
    parts = {"training": data.train, "validation": data.validation, "test": data.test}
    for name, tokens in parts.items():
        # A window is `context` inputs and the token after each, hence one token more.
        if tokens is not None and len(tokens) <= context:
            raise InputError(
                f"The {name} part of {data.source} has {len(tokens)} tokens, a window takes "
                f"{context + 1}; give a longer text or a smaller --model.context."
            )
    return data


def _from_text(config: DataConfig) -> TextData:
    """Cut one text in two."""
    corpus = load_corpus(config.path)
    text = corpus.text
    cut = validation_cut(len(text), config.validation_fraction)
    lines = config.tokenizer == "word"
    parts: dict[str, Pieces] = {
        "train": lambda: section([text], 0, cut, whole_lines=lines),
        "validation": lambda: section([text], cut, whole_lines=lines),
    }
    return _in_memory(
        parts, config, source=corpus.source, sha256=corpus.sha256, provenance=corpus.provenance()
    )


def validation_cut(length: int, validation_fraction: float, test_fraction: float = 0.0) -> int:
    """Return how many characters of a text are before its validation part."""
    return int(length * (1 - validation_fraction - test_fraction))


def _from_parts(config: DataConfig, folder: Path) -> TextData:
    """Read a text that lies in one file per part."""
    files = {part: _find_part(folder, names) for part, names in LAYOUT.items()}
    found = {part: file for part, file in files.items() if file is not None}
    if not {"train", "validation"} <= found.keys():
        raise InputError(
            f"{folder} has no text: give --data.path a folder with manifest.json (written by "
            "scripts/prepare_text.py), with train.txt and valid.txt (also .xz or .gz), or with "
            "train.bin and val.bin."
        )
    measures = {part: TextMeasure() for part in found}
    for part, file in found.items():
        for piece in file.pieces():
            measures[part].add(piece)
    sha256 = combined_sha256({part: measure.sha256 for part, measure in measures.items()})
    provenance = {
        "source": str(folder),
        "sha256": sha256,
        "bytes": sum(measure.size for measure in measures.values()),
        "parts": {part: measure.sha256 for part, measure in measures.items()},
    }
    pieces: dict[str, Pieces] = {part: file.pieces for part, file in found.items()}
    return _in_memory(pieces, config, source=str(folder), sha256=sha256, provenance=provenance)


def _find_part(folder: Path, names: tuple[str, ...]) -> TextFile | None:
    for name in names:
        for suffix in ("", ".xz", ".gz"):
            path = folder / f"{name}.txt{suffix}"
            if path.is_file():
                return TextFile(path, str(path))
    return None


def _in_memory(
    parts: Mapping[str, Pieces],
    config: DataConfig,
    *,
    source: str,
    sha256: str,
    provenance: Mapping[str, Any],
) -> TextData:
    """Tokenise the parts of a text."""
    tokenizer = make_tokenizer(config.tokenizer_settings(), parts["train"](), in_turn(parts))
    dtype = narrowest_dtype(tokenizer.vocab_size)
    measure = TextMeasure(with_zlib=True)
    tokens: dict[str, Tokens] = {}
    for part, pieces in parts.items():
        text = measure.passing(pieces()) if part == "validation" else pieces()
        runs = [run.to(dtype) for run in encode_pieces(tokenizer, text)]
        tokens[part] = InMemory(torch.cat([torch.empty(0, dtype=dtype), *runs]))
    return TextData(
        source=source,
        sha256=sha256,
        provenance=provenance,
        tokenizer=tokenizer,
        train=tokens["train"],
        validation=tokens["validation"],
        test=tokens.get("test"),
        zlib_bits_per_byte=measure.zlib_bits_per_byte,
    )


def in_turn(parts: Mapping[str, Pieces]) -> Iterator[str]:
    """Read all parts of a text, one after the other."""
    for pieces in parts.values():
        yield from pieces()


def _from_prepared(config: DataConfig, folder: Path) -> TextData:
    """Open what `prepare` wrote."""
    prepared = open_prepared(folder)
    manifest, tokens = prepared.manifest, prepared.tokens
    _check_tokenizer(config, folder, prepared.tokenizer)
    return TextData(
        source=str(folder),
        sha256=manifest["sha256"],
        provenance={key: value for key, value in manifest.items() if key != "parts"},
        tokenizer=prepared.tokenizer,
        train=tokens["train"],
        validation=tokens["validation"],
        test=tokens.get("test"),
        zlib_bits_per_byte=manifest["zlib_bits_per_byte"],
    )


def _from_nanogpt(config: DataConfig, folder: Path) -> TextData:
    """Open what nanoGPT wrote."""
    text = open_nanogpt(folder, config.gpt2_files)
    _check_tokenizer(config, folder, text.tokenizer)
    beginning = text.validation.span(0, min(ZLIB_TOKENS, len(text.validation)))
    return TextData(
        source=str(folder),
        sha256=text.sha256,
        provenance={"source": str(folder), "sha256": text.sha256, "tokenizer": text.tokenizer.name},
        tokenizer=text.tokenizer,
        train=text.train,
        validation=text.validation,
        test=None,
        zlib_bits_per_byte=zlib_bits_per_byte(decode(text.tokenizer, beginning.tolist())),
    )


def _check_tokenizer(config: DataConfig, folder: Path, tokenizer: Tokenizer) -> None:
    """Refuse settings other than those that a text was prepared with."""
    if config.tokenizer not in ("auto", tokenizer.name):
        raise InputError(
            f"{folder} was prepared with the tokenizer {tokenizer.name}, not {config.tokenizer}; "
            "leave --data.tokenizer away or prepare the text again."
        )
    if config.vocab_size is not None and tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"{folder} was prepared with {tokenizer.vocab_size:,} tokens, more than "
            f"{config.vocab_size:,}; leave --data.vocab-size away or prepare the text again."
        )
