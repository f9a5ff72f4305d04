"""The measurement: all loops in turns, medians with their range, as JSON and a table."""

import json
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from step_bench.timing import Times, silence, timed

from lm_bench.loops import EVALUATION, TRAINING, Loop, nanogpt_loop, our_loop
from psgd_lm.config import TrainConfig
from psgd_lm.data import load_data
from psgd_lm.presets import PRESETS, TUNED
from psgd_optim.config import AdamWConfig, OptimizerConfig, PSGDConfig
from psgd_optim.tools.names import closest
from psgd_optim.tools.runtime import check_threads, resolve_device, torch_threads
from psgd_optim.types import InputError

NANOGPT = "nanoGPT, adamw"


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Time training steps and evaluation in tokens per second, all loops in turns."""

    preset: str = "shakespeare-char"
    """Preset of train_lm.py with the model, the batch and the text."""
    data: str | None = None
    """Text instead of the preset's; the embedded one if nothing is given."""
    nanogpt: Path | None = None
    """Checkout of nanoGPT, whose model and loop are timed too."""
    threads: int = 2
    """CPU threads."""
    repeats: int = 7
    """Times that everything is measured."""
    device: str = "auto"
    """auto (CUDA if there is one), cpu, cuda, cuda:1 ..."""
    out: Path = Path("runs/bench_lm")
    """Figures are written to OUT.json and OUT.md."""

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise InputError(
                f"There is no preset {self.preset!r}; {closest(self.preset, list(PRESETS))}"
            )
        if self.repeats < 1:
            raise InputError(f"Got repeats {self.repeats}; give --repeats 1 or more.")
        check_threads("--threads", self.threads)


def run_bench(config: BenchConfig, command: str, tell: Callable[[str], None]) -> str:
    """Measure, and write the figures.

    Args:
        config: What to measure.
        command: What was typed, for the record.
        tell: Takes a line whenever a round is done.

    Returns:
        The table as Markdown.
    """
    preset = PRESETS[config.preset]
    task = replace(preset, data=replace(preset.data, path=config.data))
    device = resolve_device(config.device)
    with torch_threads(config.threads):
        loops = _loops(config, task, device)
        samples = _measure(loops, config.repeats, device, tell)
    tokens = task.rows * task.model.context
    table = _table(samples, tokens)
    record = {
        "command": command,
        "batch": [task.rows, task.model.context],
        "threads": config.threads,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "milliseconds": {
            f"{name}: {activity}": {"wall": [t.wall for t in times], "cpu": [t.cpu for t in times]}
            for (name, activity), times in samples.items()
        },
    }
    config.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1) + "\n"
    config.out.with_suffix(".json").write_text(text, encoding="utf-8")
    page = (
        f"`{command}`, torch {torch.__version__}, Python {platform.python_version()}\n\n{table}\n"
    )
    config.out.with_suffix(".md").write_text(page, encoding="utf-8")
    return table


def _loops(config: BenchConfig, task: TrainConfig, device: torch.device) -> dict[str, Loop]:
    data = load_data(task.data, task.model.context)
    loops: dict[str, Loop] = {}
    if config.nanogpt is not None:
        with silence():  # its model prints its size
            loops[NANOGPT] = nanogpt_loop(config.nanogpt, task, data, device)
    ours: Mapping[str, OptimizerConfig] = {"adamw": AdamWConfig(), "psgd": PSGDConfig()}
    for name, default in ours.items():
        tuned = TUNED.get(config.preset, {}).get(name, default)
        optim = tuned if isinstance(tuned, type(default)) else default
        loops[f"psgd_lm, {name}"] = our_loop(task, optim, data, device)
    return loops


def _measure(
    loops: Mapping[str, Loop], repeats: int, device: torch.device, tell: Callable[[str], None]
) -> dict[tuple[str, str], list[Times]]:
    """Do everything once for warmth, and then in turns."""
    samples: dict[tuple[str, str], list[Times]] = {}
    for number in range(repeats + 1):
        for activity in (TRAINING, EVALUATION):
            for name, loop in loops.items():
                times = timed(loop[activity], device)
                if number:
                    samples.setdefault((name, activity), []).append(times)
        tell(f"round {number} of {repeats}")
    sys.stderr.flush()
    return samples


def _table(samples: Mapping[tuple[str, str], list[Times]], tokens: int) -> str:
    lines = [
        "| loop | activity | tokens/s (median) | slowest to fastest | CPU ms per batch "
        "| times the first |",
        "|---|---|---:|---:|---:|---:|",
    ]
    first: dict[str, float] = {}
    for (name, activity), times in samples.items():
        speeds = sorted(1000 * tokens / t.wall for t in times)
        middle = median(speeds)
        base = first.setdefault(activity, middle)
        lines.append(
            f"| {name} | {activity} | {middle:,.0f} | {speeds[0]:,.0f} to {speeds[-1]:,.0f} "
            f"| {median(t.cpu for t in times):,.0f} | {middle / base:.2f} |"
        )
    return "\n".join(lines)
