"""Tokenizers by name: made for a text, or rebuilt from what was saved."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from psgd_lm.tokenizer.base import Tokenizer
from psgd_lm.tokenizer.bpe import BPETokenizer, tokens_from_text
from psgd_lm.tokenizer.byte import ByteTokenizer
from psgd_lm.tokenizer.char import CharTokenizer
from psgd_lm.tokenizer.gpt2 import GPT2Tokenizer, load_gpt2
from psgd_lm.tokenizer.word import WordTokenizer
from psgd_optim.types import InputError

TokenizerName = Literal["char", "byte", "word", "bpe", "gpt2"]
BPE_VOCAB_SIZE = 4096
"""Tokens of a BPE of whose size nothing is said."""


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """Which tokenizer a text gets."""

    name: TokenizerName = "char"
    vocab_size: int | None = None
    """Most tokens of word and bpe; None is every word, or 4,096."""
    separator: str | None = None
    """Text between documents, of which bpe and gpt2 make one token."""
    gpt2_files: str | None = None
    """Folder with GPT-2's vocabulary; None is tiktoken's cache."""

    def __post_init__(self) -> None:
        least = {"word": 2, "bpe": 256 + bool(self.separator)}.get(self.name)
        if self.separator == "":
            raise InputError("Got an empty separator; leave --separator away for none.")
        if self.vocab_size is None:
            return
        if least is None:
            raise InputError(
                f"Got a vocabulary size for the tokenizer {self.name}, which has its own; leave "
                "--vocab-size away or use word or bpe."
            )
        if self.vocab_size < least:
            raise InputError(
                f"Got vocab_size {self.vocab_size}; give --vocab-size {least} or more with the "
                f"tokenizer {self.name}."
            )


def make_tokenizer(
    settings: TokenizerSettings, training: Iterable[str], whole: Iterable[str]
) -> Tokenizer:
    """Build a tokenizer for a text.

    Args:
        settings: Which one.
        training: The pieces of the training part, which word and bpe learn from; read if needed.
        whole: The pieces of all parts, so that char meets no unknown character; read if needed.

    Returns:
        The tokenizer.
    """
    if settings.name == CharTokenizer.name:
        return CharTokenizer.of_pieces(whole)
    if settings.name == WordTokenizer.name:
        return WordTokenizer.of_pieces(training, settings.vocab_size)
    if settings.name == BPETokenizer.name:
        size = settings.vocab_size or BPE_VOCAB_SIZE
        return BPETokenizer.of_pieces(training, size, settings.separator)
    if settings.name == GPT2Tokenizer.name:
        return load_gpt2(settings.gpt2_files, settings.separator)
    return ByteTokenizer()


def tokenizer_from_dict(saved: Mapping[str, Any]) -> Tokenizer:
    """Rebuild a tokenizer.

    Args:
        saved: What its `to_dict` returned.

    Returns:
        The tokenizer.

    Raises:
        InputError: If the kind is not known to this version.
    """
    name = saved["name"]
    if name == CharTokenizer.name:
        return CharTokenizer(saved["alphabet"])
    if name == ByteTokenizer.name:
        return ByteTokenizer()
    if name == WordTokenizer.name:
        return WordTokenizer(saved["words"])
    for kind in (BPETokenizer, GPT2Tokenizer):
        if name == kind.name:
            return kind(tokens_from_text(saved["tokens"]), saved["separator"])
    raise InputError(
        f"The run has a tokenizer {name!r}; this version knows char, byte, word, bpe and gpt2: "
        "train again."
    )
