"""A trained run, evaluated on a part of its text."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch

from psgd_lm.data import TextData
from psgd_lm.dynamic import DynamicConfig, evaluate_dynamically
from psgd_lm.evaluate import STREAMS, Evaluation, Reading, evaluate
from psgd_lm.saved_run import SavedRun, load_run
from psgd_lm.tokens import Tokens
from psgd_optim.tools.runtime import torch_threads
from psgd_optim.types import InputError


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which checkpoint of a run to evaluate, on what, and how."""

    part: Literal["validation", "test", "train"] = "validation"
    """The part of the text."""
    best: bool = False
    """Take the checkpoint with the lowest evaluation instead of the last one."""
    stride: int = 0
    """Tokens from one window to the next: each has at least context - stride tokens before it. 0
    cuts windows side by side, as in training."""
    streams: int = STREAMS
    """Parts of the text that a recurrent model reads side by side, each from an empty memory."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products; training evaluates in float32, whatever its own precision is."""
    dynamic: DynamicConfig = field(default_factory=DynamicConfig)
    """Learning from the text as it is read; --dynamic.lr switches it on."""
    device: str = "auto"
    """auto (CUDA if there is one), cpu, cuda, cuda:1 ..."""
    json: Path | None = None
    """File to write the figures to."""

    def __post_init__(self) -> None:
        self.reading()
        if not self.dynamic.lr and self.dynamic != DynamicConfig():
            raise InputError("Got settings of --dynamic without its step; give --dynamic.lr too.")
        if self.json and (self.json.is_dir() or not self.json.parent.is_dir()):
            raise InputError(f"Cannot write {self.json}; give --json a file in a folder there is.")
        changed = self.stride or self.streams != STREAMS or self.precision != "float32"
        if self.dynamic.lr and changed:
            raise InputError(
                "Got --stride, --streams or --precision with --dynamic.lr; dynamic evaluation "
                "reads one segment after the other: give --dynamic.segment instead."
            )

    def reading(self) -> Reading:
        """Return how the text is read."""
        return Reading(
            stride=self.stride,
            streams=self.streams,
            autocast=torch.bfloat16 if self.precision == "bfloat16" else None,
        )


DEFAULT = EvaluateConfig()


def evaluate_run(run_dir: Path, config: EvaluateConfig = DEFAULT) -> dict[str, float | str]:
    """Evaluate a run's checkpoint on a part of its text; no file of the run changes.

    On the device that the run was trained on, the figures of the validation part are exactly
    those that it logged.

    Args:
        run_dir: The run's folder.
        config: Which checkpoint, on what, and how.

    Returns:
        The fields of `Evaluation`, the checkpoint's `step`, the `part`, and for the validation
        part `zlib_bits_per_byte`.
    """
    run = load_run(run_dir, best=config.best, device=config.device)
    data = run.load_data()
    with torch_threads(run.threads):
        evaluation = _evaluate(run, data, _part(data, config.part), config)
    figures = {"step": run.step, "part": config.part, **asdict(evaluation)}
    if config.part == "validation":
        figures["zlib_bits_per_byte"] = data.zlib_bits_per_byte
    return figures


def _part(data: TextData, name: str) -> Tokens:
    if name == "test" and data.test is None:
        raise InputError(f"{data.source} has no test part; give --part validation or --part train.")
    tokens: Tokens = getattr(data, name)
    return tokens


def _evaluate(run: SavedRun, data: TextData, tokens: Tokens, config: EvaluateConfig) -> Evaluation:
    byte_lengths = run.tokenizer.byte_lengths()
    if config.dynamic.lr:
        return evaluate_dynamically(run.model, tokens, byte_lengths, config.dynamic, data.train)
    return evaluate(run.model, tokens, byte_lengths, config.reading())
