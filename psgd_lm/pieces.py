"""How a whole text is cut up for a model: every token but the first is predicted exactly once.

Positions count targets: position `i` is the token `i + 1` of the text, predicted from those before.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from psgd_lm.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What goes through a model at once."""

    inputs: Tensor
    """(B, T) int64."""
    targets: Tensor
    """(B, T) int64, the token after each input."""
    positions: Tensor
    """(B, T) int64, of the targets."""
    scored: Tensor
    """(B, T) bool, which targets count here; the others count elsewhere."""
    begins: bool = True
    """Whether the model begins without a memory, and not with that of the piece before."""


def windows(tokens: Tokens, context: int, rows: int) -> Iterator[Piece]:
    """Cut a text into windows that do not overlap; the last one may be shorter.

    Args:
        tokens: More than one.
        context: Inputs per window.
        rows: Windows per piece.

    Yields:
        Pieces, (rows, context) but for the last two.
    """
    count = len(tokens) - 1
    for starts in torch.split(torch.arange(count // context) * context, rows):
        yield _piece(tokens, starts, context)
    if rest := count % context:
        yield _piece(tokens, torch.tensor([count - rest]), rest)


def overlapping_windows(tokens: Tokens, context: int, stride: int, rows: int) -> Iterator[Piece]:
    """Cut a text into windows that overlap, each predicting the last `stride` tokens only.

    So every token has at least `context - stride` tokens before it, but where the text begins.

    Args:
        tokens: More than one.
        context: Inputs per window.
        stride: Tokens from one window to the next, less than the context.
        rows: Windows per piece.

    Yields:
        Pieces, (rows, context) but for a short text, the first window, and the last piece.
    """
    count = len(tokens) - 1
    if count <= context:
        yield _piece(tokens, torch.tensor([0]), count)
        return
    yield _piece(tokens, torch.tensor([0]), context)
    whole = (count - context) // stride
    for starts in torch.split(torch.arange(1, whole + 1) * stride, rows):
        yield _piece(tokens, starts, context, fresh=stride)
    if rest := (count - context) % stride:
        yield _piece(tokens, torch.tensor([count - context]), context, fresh=rest)


def streams(tokens: Tokens, rows: int, length: int) -> Iterator[Piece]:
    """Cut a text into parts that are read side by side, for a model that carries a memory along.

    Args:
        tokens: More than one.
        rows: Parts of equal size, but for one token; no more than there are targets.
        length: Inputs per piece.

    Yields:
        Pieces, (rows, length) but for the last; the first begins.
    """
    count = len(tokens) - 1
    rows = min(rows, count)
    # The longer parts come last, so that the shorter ones, read along to the end, stay in the text.
    sizes = torch.full((rows,), count // rows)
    sizes[rows - count % rows :] += 1
    starts = sizes.cumsum(0) - sizes
    longest = int(sizes.max())
    for first in range(0, longest, length):
        step = min(length, longest - first)
        piece = _piece(tokens, starts + first, step)
        inside = torch.arange(first, first + step) < sizes[:, None]  # (rows, step)
        yield Piece(
            inputs=piece.inputs,
            targets=piece.targets,
            positions=piece.positions,
            scored=inside.to(piece.scored.device),
            begins=first == 0,
        )


def _piece(tokens: Tokens, starts: Tensor, length: int, *, fresh: int | None = None) -> Piece:
    """Read windows of inputs and targets, of which the last `fresh` count (None: all)."""
    read = tokens.windows(starts, length + 1)  # (B, T + 1)
    offsets = torch.arange(length)
    scored = (offsets >= (0 if fresh is None else length - fresh)).expand(len(starts), length)
    return Piece(
        inputs=read[:, :-1],
        targets=read[:, 1:],
        positions=(starts[:, None] + offsets).to(read.device),
        scored=scored.to(read.device),
    )
