"""The loss of a model over a whole text, once for every token, in three units.

A model with a context is given windows of one context that do not overlap (or, with `stride`,
windows that do). A recurrent model reads the text as `STREAMS` parts side by side, each from an
empty memory that it carries along to the part's end. Neither depends on a batch size or a random
number, so training and `evaluate_run` give the same figures.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from psgd_lm.language_model import LanguageModel, token_losses
from psgd_lm.pieces import Piece, overlapping_windows, streams, windows
from psgd_lm.tokens import Tokens
from psgd_optim.types import InputError

BATCH_TOKENS = 4096
MOST_LOGITS = 2**26
"""Logits that go through the model at once: 256 MB in single precision, whatever the vocabulary."""
LOSS_LOGITS = 2**20
"""Logits whose losses are taken at once: their copies stay in a CPU's caches."""
STREAMS = 10
"""Parts of a text that a recurrent model reads side by side: AWD-LSTM's number for validation.

A part's first tokens are predicted from little; with ten parts of a text of 80 000 tokens that is
nothing that shows, and reading is several times as fast as with one."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The loss of a model over a text."""

    loss: float
    """Mean over the tokens, in nats."""
    standard_error: float
    """Of that mean, taking the tokens as independent."""
    block_standard_error: float
    """Of that mean, from the means of about sqrt(tokens) blocks of as many neighbouring tokens:
    the one to quote, for losses of neighbours go together. 0 for fewer than two blocks."""
    perplexity: float
    """exp(loss); capped at e^700, near the largest float."""
    bits_per_byte: float
    """Total loss in bits by the UTF-8 bytes of the tokens it was taken over."""
    tokens: int
    """How many those are: all but the first, which nothing predicts."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a text is read; all but the first two change the figures."""

    batch_tokens: int = BATCH_TOKENS
    """About how many tokens go through the model at once."""
    autocast: torch.dtype | None = None
    """Precision of the matrix products; None is the model's."""
    stride: int = 0
    """Tokens from one window to the next, less than the context; 0 for windows side by side."""
    streams: int = STREAMS
    """Parts that a recurrent model reads side by side."""

    def __post_init__(self) -> None:
        for name, least in (("batch_tokens", 1), ("stride", 0), ("streams", 1)):
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise InputError(
                    f"Got {name} {getattr(self, name)}; give --{flag} {least} or more."
                )


DEFAULT_READING = Reading()


def read_pieces(model: LanguageModel, tokens: Tokens, reading: Reading) -> Iterator[Piece]:
    """Cut a text up as a model reads it.

    Args:
        model: Any.
        tokens: More than one.
        reading: How.

    Returns:
        The pieces, in an order that carried memory needs.

    Raises:
        InputError: If the reading asks for what the model does not have.
    """
    context = model.context
    together = min(reading.batch_tokens, max(1, MOST_LOGITS // model.vocab_size))
    rows = max(1, together // context)
    if model.is_recurrent:
        if reading.stride:
            raise InputError(
                f"Got stride {reading.stride} for a recurrent model, which sees the whole text; "
                "leave --stride away."
            )
        return streams(tokens, reading.streams, max(1, together // reading.streams))
    if reading.stride >= context:
        raise InputError(
            f"Got stride {reading.stride} with a context of {context}; give --stride less than "
            "the context, or 0."
        )
    if reading.stride:
        return overlapping_windows(tokens, context, reading.stride, rows)
    return windows(tokens, context, rows)


@contextlib.contextmanager
def evaluation_mode(model: LanguageModel) -> Iterator[None]:
    """Switch dropout off for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def evaluate(
    model: LanguageModel,
    tokens: Tokens,
    byte_lengths: Tensor,
    reading: Reading = DEFAULT_READING,
) -> Evaluation:
    """Evaluate a model on every token of a text.

    Args:
        model: Left in the mode it came in.
        tokens: More than one.
        byte_lengths: (vocab_size,), UTF-8 bytes of each token.
        reading: How the model reads the text.

    Returns:
        The figures.
    """
    device = next(model.parameters()).device
    tokens = tokens.to(device)
    count = len(tokens) - 1
    state = model.empty_memory(min(reading.streams, count)) if model.is_recurrent else None

    def losses_of(piece: Piece) -> Tensor:
        nonlocal state
        with torch.autocast(device.type, reading.autocast, enabled=reading.autocast is not None):
            output = model(piece.inputs, state)
        state = output.memory
        return losses_in_chunks(output.logits, piece.targets)

    with torch.inference_mode(), evaluation_mode(model):
        return tally(read_pieces(model, tokens, reading), losses_of, count, byte_lengths)


def losses_in_chunks(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the losses of a piece, taken in single precision over a few tokens at a time.

    Args:
        logits: (B, T, V).
        targets: (B, T) int64.

    Returns:
        (B, T), in nats.
    """
    rows = max(1, LOSS_LOGITS // logits.shape[-1])
    flat = logits.flatten(0, 1), targets.flatten()
    chunks = zip(*(torch.split(whole, rows) for whole in flat), strict=True)
    losses = [token_losses(part[None].float(), wanted[None]) for part, wanted in chunks]
    return torch.cat(losses).view(targets.shape)


def tally(
    pieces: Iterable[Piece],
    losses_of: Callable[[Piece], Tensor],
    count: int,
    byte_lengths: Tensor,
) -> Evaluation:
    """Collect the losses of pieces into figures.

    Args:
        pieces: Which score every position once.
        losses_of: Returns the losses of a piece, (B, T).
        count: Positions.
        byte_lengths: (vocab_size,), UTF-8 bytes of each token.

    Returns:
        The figures.
    """
    losses, size = torch.empty(0), torch.zeros((), dtype=torch.int64)
    for piece in pieces:
        if not losses.numel():
            device = piece.targets.device
            losses = torch.full((count,), math.nan, device=device)
            size, byte_lengths = size.to(device), byte_lengths.to(device)
        losses[piece.positions[piece.scored]] = losses_of(piece)[piece.scored]
        size += byte_lengths[piece.targets[piece.scored]].sum()
    return _figures(losses, int(size))


def _figures(losses: Tensor, size: int) -> Evaluation:
    """Sum up the losses of a text of `size` bytes; in double precision, block by block."""
    count = len(losses)
    length = max(1, math.isqrt(count))
    whole = count // length * length
    blocks = losses[:whole].view(-1, length).sum(1, dtype=torch.float64)  # (count // length,)
    total = float(blocks.sum() + losses[whole:].sum(dtype=torch.float64))
    loss = total / count
    # Deviations are taken before squaring: the loss itself may be large.
    parts = torch.split(losses, MOST_LOGITS)
    squares = math.fsum(float((part.double() - loss).square().sum()) for part in parts)
    spread = float((blocks / length).std()) if len(blocks) > 1 else 0.0
    return Evaluation(
        loss=loss,
        standard_error=math.sqrt(squares) / count,
        block_standard_error=spread / math.sqrt(len(blocks)),
        perplexity=math.exp(min(loss, 700.0)),
        bits_per_byte=total / math.log(2) / size,
        tokens=count,
    )
