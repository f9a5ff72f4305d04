"""A tokenised text in two parts, and the batches of every step.

A batch is a pure function of the seed and the step: a resumed run needs no data position, and
nothing else that draws random numbers changes the order of the data.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from psgd_lm.corpus import Corpus, load_corpus
from psgd_lm.tokenizer import Tokenizer, make_tokenizer
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
    """A text, its tokenizer, and the tokens of its two parts in the narrowest integer type."""

    corpus: Corpus
    tokenizer: Tokenizer
    train: Tensor  # (n_train,)
    validation: Tensor  # (n_validation,)
    validation_text: str


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
        corpus=corpus,
        tokenizer=tokenizer,
        train=parts["training"].to(dtype),
        validation=parts["validation"].to(dtype),
        validation_text=texts["validation"],
    )


def narrowest_dtype(vocab_size: int) -> torch.dtype:
    """Return the smallest integer type that holds every id and can be indexed on all devices."""
    if vocab_size <= 2**8:
        return torch.uint8
    return torch.int16 if vocab_size <= 2**15 else torch.int32


def sample_batch(
    tokens: Tensor, *, context: int, batch_size: int, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Draw the windows of one step.

    Args:
        tokens: (n,), one part of the text, n > context.
        context: Inputs per window.
        batch_size: Windows, drawn with replacement.
        seed: The run's seed.
        step: Steps done before this one.

    Returns:
        (batch_size, context) int64 twice: the inputs, and the token after each of them.
    """
    # Hashing keeps the streams of neighbouring seeds and steps apart: (0, 1) is not (1, 0).
    digest = hashlib.sha256(f"{seed} {step}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
    # Drawn on the CPU whatever the device, so that all devices see the same data.
    starts = torch.randint(len(tokens) - context, (batch_size, 1), generator=generator)
    windows = tokens[(starts + torch.arange(context + 1)).to(tokens.device)].long()
    return windows[:, :-1], windows[:, 1:]
