"""The loss of a model over a whole text, once for every token, in three units.

The text is cut into windows of one context that do not overlap, so the figure does not depend
on a batch size or a random number, and training and `evaluate_run` give the same.
"""

import math
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from psgd_lm.gpt import GPT, token_losses
from psgd_lm.saved_run import load_run
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
    model: GPT, tokens: Tensor, byte_lengths: Tensor, *, batch_tokens: int = BATCH_TOKENS
) -> Evaluation:
    """Evaluate a model on every token of a text.

    Args:
        model: On the device of the tokens; left in the mode it came in.
        tokens: (n,), n > 1.
        byte_lengths: (vocab_size,), UTF-8 bytes of each token.
        batch_tokens: About how many tokens go through the model at once; no result depends on it.

    Returns:
        The figures.
    """
    was_training = model.training
    model.eval()
    # Sums in float64: at 1e8 tokens a float32 sum has lost the digits that matter.
    total, squares = (torch.zeros((), dtype=torch.float64, device=tokens.device) for _ in range(2))
    for inputs, targets in _windows(tokens, model.config.context, batch_tokens):
        losses = token_losses(model, inputs, targets).double()  # (B * T,)
        total += losses.sum()
        squares += losses.square().sum()
    model.train(was_training)
    count = len(tokens) - 1
    size = int(byte_lengths.to(tokens.device)[tokens[1:].long()].sum())
    loss = float(total) / count
    variance = max(0.0, float(squares) / count - loss**2)
    return Evaluation(
        loss=loss,
        standard_error=math.sqrt(variance / count),
        perplexity=math.exp(min(loss, 700.0)),
        bits_per_byte=float(total) / math.log(2) / size,
        tokens=count,
    )


def _windows(tokens: Tensor, context: int, batch_tokens: int) -> list[tuple[Tensor, Tensor]]:
    """Cut a text into batches of inputs and targets, (B, T); the last may be one short row."""
    inputs, targets = tokens[:-1].long(), tokens[1:].long()
    whole = len(inputs) // context * context
    rows = max(1, batch_tokens // context)
    batches = list(
        zip(
            torch.split(inputs[:whole].view(-1, context), rows),
            torch.split(targets[:whole].view(-1, context), rows),
            strict=True,
        )
    )
    if whole < len(inputs):
        batches.append((inputs[None, whole:], targets[None, whole:]))
    return batches


def zlib_bits_per_byte(text: str) -> float:
    """Return what zlib makes of a text at its highest level: a floor that a model has to beat."""
    content = text.encode()
    return 8 * len(zlib.compress(content, 9)) / len(content)


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
    tokens = data.validation.to(run.device)
    with torch_threads(run.threads):
        evaluation = evaluate(run.model, tokens, run.tokenizer.byte_lengths())
    return {
        "step": run.step,
        **asdict(evaluation),
        "zlib_bits_per_byte": zlib_bits_per_byte(data.validation_text),
    }
