"""Dropout of every entry, and AWD-LSTM's kinds with shared masks: over time, or by all of a word.

All draw from torch's global generator, and nothing where nothing is dropped.

Shapes: `B` rows of `T` tokens, `D` features, `V` words.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_LEVELS = 2**16


def element_dropout(x: Tensor, dropout: float, *, training: bool) -> Tensor:
    """Drop entries, each on its own.

    Args:
        x: Any shape.
        dropout: The part dropped, in [0, 1); on a CPU it is rounded to a multiple of 2^-16.
        training: Whether anything is dropped.

    Returns:
        The shape of `x`, with its mean.
    """
    if not training or not dropout:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, dropout)
    # torch's own draws one random number per entry on a CPU, a tenth of a GPT's training step.
    # Here one of 64 bits serves four entries, which takes a third of the time.
    dropped = min(round(dropout * _LEVELS), _LEVELS - 1)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    levels = words.view(torch.int16)[: x.numel()].view(x.shape)  # uniform in -2^15 ... 2^15 - 1
    kept = levels >= dropped - _LEVELS // 2
    return (x * kept).mul_(_LEVELS / (_LEVELS - dropped))


def _mask(like: Tensor, shape: tuple[int, ...], dropout: float) -> Tensor:
    """Return factors with mean 1: 0 with the given probability, else 1 / (1 - dropout)."""
    keep = 1 - dropout
    return like.new_empty(shape).bernoulli_(keep).div_(keep)


def locked_dropout(x: Tensor, dropout: float, *, training: bool) -> Tensor:
    """Drop features for a whole row, the same ones at every position.

    Args:
        x: (B, T, D).
        dropout: The part dropped, in [0, 1).
        training: Whether anything is dropped.

    Returns:
        (B, T, D), with the mean of `x`.

    Source: Gal and Ghahramani, 2016, section 4; AWD-LSTM, section 4.2.
    """
    if not training or not dropout:
        return x
    return x * _mask(x, (x.shape[0], 1, x.shape[2]), dropout)


def word_dropout(
    x: Tensor, tokens: Tensor, words: int, dropout: float, *, training: bool
) -> Tensor:
    """Drop words, each at all of its places.

    The embedding itself is left alone, so that its gradient may be sparse.

    Args:
        x: (B, T, D), the embedded tokens.
        tokens: (B, T) int64.
        words: V, the size of the vocabulary.
        dropout: The part of the vocabulary that is dropped, in [0, 1).
        training: Whether anything is dropped.

    Returns:
        (B, T, D), with the mean of `x`.

    Source: AWD-LSTM, section 4.3.
    """
    if not training or not dropout:
        return x
    return x * F.embedding(tokens, _mask(x, (words, 1), dropout))


def weight_dropout(weight: Tensor, dropout: float, *, training: bool) -> Tensor:
    """Drop entries of a weight for a whole forward pass.

    Args:
        weight: Any shape; the trained parameter, which keeps all of its entries.
        dropout: The part dropped, in [0, 1).
        training: Whether anything is dropped.

    Returns:
        The weight to use, a function of the parameter: dropped entries get no gradient.

    Source: AWD-LSTM, section 2.
    """
    return F.dropout(weight, dropout) if training and dropout else weight
