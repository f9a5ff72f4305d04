"""A tokenised text in its parts."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from psgd_lm.corpus import load_corpus
from psgd_lm.tokenizer import Tokenizer, make_tokenizer
from psgd_lm.tokens import InMemory, Tokens, narrowest_dtype
from psgd_optim.types import InputError


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text, cut into which tokens."""

    path: str | None = None
    """A UTF-8 text file; None is the embedded corpus (Python's own help texts)."""
    tokenizer: Literal["char", "byte"] = "char"
    """One token per character of the text, or one per byte."""
    validation_fraction: float = 0.1
    """Part of the text, at its end, that is only evaluated on; between 0 and 1."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise InputError(
                f"Got validation_fraction {self.validation_fraction}; give "
                "--data.validation-fraction a number between 0 and 1."
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
    """What zlib makes of the validation part at its highest level: a floor that a model beats."""


def load_data(config: DataConfig, context: int) -> TextData:
    """Read, split and tokenise a text.

    Args:
        config: Which text, and how.
        context: Tokens that the model sees at once.

    Returns:
        The tokens on the CPU.

    Raises:
        InputError: If the text cannot be read, or a part of it is not longer than one context.
    """
    corpus = load_corpus(config.path)
    tokenizer = make_tokenizer(config.tokenizer, corpus.text)
    # A window is `context` inputs and the token after each, hence one token more.
    cut = int(len(corpus.text) * (1 - config.validation_fraction))
    texts = {"training": corpus.text[:cut], "validation": corpus.text[cut:]}
    parts = {name: tokenizer.encode(text) for name, text in texts.items()}
    for name, tokens in parts.items():
        if len(tokens) <= context:
            raise InputError(
                f"The {name} part of {corpus.source} has {len(tokens)} tokens, a window takes "
                f"{context + 1}; give a longer text or a smaller --model.context."
            )
    dtype = narrowest_dtype(tokenizer.vocab_size)
    return TextData(
        source=corpus.source,
        sha256=corpus.sha256,
        provenance=corpus.provenance(),
        tokenizer=tokenizer,
        train=InMemory(parts["training"].to(dtype)),
        validation=InMemory(parts["validation"].to(dtype)),
        test=None,
        zlib_bits_per_byte=zlib_bits_per_byte(texts["validation"]),
    )


def zlib_bits_per_byte(text: str) -> float:
    """Return what zlib makes of a text at its highest level."""
    content = text.encode()
    return 8 * len(zlib.compress(content, 9)) / len(content)
