"""The loss of a model over a whole text, once for every token, in three units.

The text is cut into windows of one context that do not overlap, so the figure does not depend
on a batch size or a random number, and training and `evaluate_run` give the same.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from psgd_lm.language_model import LanguageModel, token_losses
from psgd_lm.saved_run import load_run
from psgd_lm.tokens import Tokens
from psgd_optim.tools.runtime import torch_threads

BATCH_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The loss of a model over a text."""

    loss: float
    """Mean over the tokens, in nats."""
    standard_error: float
    """Of that mean, taking the tokens as independent."""
    perplexity: float
    """exp(loss); capped at e^700, near the largest float."""
    bits_per_byte: float
    """Total loss in bits by the UTF-8 bytes of the tokens it was taken over."""
    tokens: int
    """How many those are: all but the first, which nothing predicts."""


@torch.inference_mode()
def evaluate(
    model: LanguageModel, tokens: Tokens, byte_lengths: Tensor, *, batch_tokens: int = BATCH_TOKENS
) -> Evaluation:
    """Evaluate a model on every token of a text.

    Args:
        model: On the device of the tokens; left in the mode it came in.
        tokens: More than one.
        byte_lengths: (vocab_size,), UTF-8 bytes of each token.
        batch_tokens: About how many tokens go through the model at once; no result depends on it.

    Returns:
        The figures.
    """
    was_training = model.training
    model.eval()
    # Sums in float64: at 1e8 tokens a float32 sum has lost the digits that matter.
    device = next(model.parameters()).device
    total, squares = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))
    size = torch.zeros((), dtype=torch.int64, device=device)
    byte_lengths = byte_lengths.to(device)
    for inputs, targets in _windows(tokens.to(device), model.context, batch_tokens):
        losses = token_losses(model(inputs).logits, targets).double()  # (B * T,)
        total += losses.sum()
        squares += losses.square().sum()
        size += byte_lengths[targets].sum()
    model.train(was_training)
    count = len(tokens) - 1
    loss = float(total) / count
    variance = max(0.0, float(squares) / count - loss**2)
    return Evaluation(
        loss=loss,
        standard_error=math.sqrt(variance / count),
        perplexity=math.exp(min(loss, 700.0)),
        bits_per_byte=float(total) / math.log(2) / int(size),
        tokens=count,
    )


def _windows(tokens: Tokens, context: int, batch_tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut a text into batches of inputs and targets, (B, T); the last may be one short row."""
    count = len(tokens) - 1
    rows = max(1, batch_tokens // context)
    whole = torch.arange(count // context) * context
    for starts in torch.split(whole, rows):
        windows = tokens.windows(starts, context + 1)
        yield windows[:, :-1], windows[:, 1:]
    if rest := count % context:
        window = tokens.span(count - rest, count + 1)[None]
        yield window[:, :-1], window[:, 1:]


def evaluate_run(run_dir: Path, *, best: bool = False, device: str = "auto") -> dict[str, float]:
    """Evaluate a run's checkpoint on the validation part of its text.

    On the device that the run was trained on, the figures are exactly those that it logged.

    Args:
        run_dir: The run's folder.
        best: Take the checkpoint with the lowest evaluation instead of the last one.
        device: As in the training configuration.

    Returns:
        The fields of `Evaluation`, the checkpoint's `step`, and `zlib_bits_per_byte`.
    """
    run = load_run(run_dir, best=best, device=device)
    data = run.load_data()
    with torch_threads(run.threads):
        evaluation = evaluate(run.model, data.validation, run.tokenizer.byte_lengths())
    return {
        "step": run.step,
        **asdict(evaluation),
        "zlib_bits_per_byte": data.zlib_bits_per_byte,
    }
