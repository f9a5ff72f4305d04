"""The final figures of a run, as `summary.json` holds them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from psgd_lm.config import TrainConfig
from psgd_lm.data import TextData
from psgd_lm.evaluate import evaluate
from psgd_lm.language_model import LanguageModel
from psgd_lm.meter import model_peak
from psgd_lm.progress import Progress
from psgd_lm.saved_run import load_run
from psgd_lm.timing import means


def summarise_run(
    config: TrainConfig, progress: Progress, model: LanguageModel, data: TextData
) -> dict[str, Any]:
    """Return what a run came to so far.

    Args:
        config: The run.
        progress: Where it stands.
        model: What it trained.
        data: The text.

    Returns:
        JSON values by name.
    """
    evaluation = progress.evaluation
    return {
        "seed": config.seed,
        "steps": progress.step,
        "steps_left_out": list(progress.skipped),
        **_speed(config, progress, model),
        "optimizer": config.optim.name,
        "lr": config.optim.lr,
        "model": config.model.name,
        "parameters": model.parameter_count(),
        "val_loss": evaluation["loss"],
        "val_loss_standard_error": evaluation["standard_error"],
        "val_step": progress.evaluated_at,
        "perplexity": evaluation["perplexity"],
        "bits_per_byte": evaluation["bits_per_byte"],
        "best_val_loss": progress.best_loss,
        "best_step": progress.best_step,
        "zlib_bits_per_byte": data.zlib_bits_per_byte,
        "corpus": dict(data.provenance),
        "device": str(next(model.parameters()).device),
        "torch": torch.__version__,
    }


def _speed(config: TrainConfig, progress: Progress, model: LanguageModel) -> Mapping[str, Any]:
    seconds = progress.training_seconds
    tokens_per_second = progress.tokens / seconds if seconds else 0.0
    flops, peak = model.flops_per_token(), model_peak(model, config.precision)
    return {
        "seconds": progress.seconds,
        "ms_per_step": 1000 * seconds / max(1, progress.step),
        "steps_per_second": progress.step / seconds if seconds else 0.0,
        "tokens": progress.tokens,
        "tokens_per_second": tokens_per_second,
        "flops_per_token": flops,
        "mfu": tokens_per_second * flops / peak.operations if peak else None,
        "peak": {"operations": peak.operations, "source": peak.source} if peak else None,
        "seconds_per_step": means(progress.timing, ""),
    }


def figures_on_test(run_dir: Path, data: TextData, device: str) -> dict[str, float]:
    """Return the figures of the best checkpoint on the part that nothing was chosen by.

    Args:
        run_dir: The run's folder.
        data: The text.
        device: Where to evaluate.

    Returns:
        Figures by name; none if the text has no such part.
    """
    if data.test is None:
        return {}
    run = load_run(run_dir, best=True, device=device)
    found = evaluate(run.model, data.test.to(run.device), data.tokenizer.byte_lengths())
    return {
        "test_loss": found.loss,
        "test_loss_standard_error": found.standard_error,
        "test_perplexity": found.perplexity,
        "test_bits_per_byte": found.bits_per_byte,
        "test_step": run.step,
    }
