"""The runs of a comparison: optimizers with their settings, times learning rates and seeds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from psgd_optim.config import OPTIMIZERS, OptimizerConfig
from psgd_optim.tools.grid import Grid, parse_entry
from psgd_optim.types import InputError
from psgd_rl.config import PPOConfig, TrainConfig
from psgd_rl.presets import PRESETS, TUNED, WITH_OPTIMIZER


@dataclass(frozen=True, kw_only=True)
class RLGrid(Grid):
    """Which runs to compare; all other flags are those of train_rl.py and hold for every run."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of every run; the table is over them."""
    run_dir: Path = Path("runs/compare-rl")
    """Folder that the comparison and its runs are written to."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a comparison."""

    entry: str
    """The label of its optimizer."""
    config: TrainConfig


def members(preset: str, task: TrainConfig, grid: RLGrid) -> dict[str, Run]:
    """Lay out the runs of a comparison; actor and critic have the same optimizer and rate.

    Args:
        preset: The preset that the task was made from; optimizers take their settings for it.
        task: What all runs share; its optimizers and seed are replaced.
        grid: Which optimizers, learning rates and seeds.

    Returns:
        The runs by name.

    Raises:
        InputError: If two runs are the same, or the task has its own optimizers or seed.
    """
    for name in ("actor", "critic", "seed"):
        if getattr(task, name) != getattr(PRESETS[preset], name):
            raise InputError(
                f"Got --{name} for a comparison; give --optimizers, --lrs and --seeds."
            )
    known = known_optimizers(preset)
    runs: dict[str, Run] = {}
    for text in grid.optimizers:
        entry = parse_entry(text, known)
        steps = max(round(entry.fraction * task.total_steps), 1)
        ppo = _update_settings(preset, task, entry.name)
        for lr in grid.learning_rates(entry, known[entry.name].lr, {}):
            optimizer = replace(known[entry.name], lr=lr)
            for seed in grid.seeds:
                name = f"{entry.label}-lr{lr:g}-seed{seed}"
                if name in runs:
                    raise InputError(f"The run {name} is asked for twice; name each value once.")
                config = replace(
                    task,
                    ppo=ppo,
                    actor=optimizer,
                    critic=optimizer,
                    seed=seed,
                    total_steps=steps,
                )
                runs[name] = Run(entry=entry.label, config=config)
    return runs


def _update_settings(preset: str, task: TrainConfig, optimizer: str) -> PPOConfig:
    """Return the task's settings, with the optimizer's own where the task keeps the preset's."""
    own = WITH_OPTIMIZER.get(preset, {}).get(optimizer, {})
    usual = PRESETS[preset].ppo
    changes = {k: v for k, v in own.items() if getattr(task.ppo, k) == getattr(usual, k)}
    return replace(task.ppo, **changes)  # type: ignore[arg-type]  # fields of several types


def known_optimizers(preset: str) -> Mapping[str, OptimizerConfig]:
    """Return what the names of `--optimizers` stand for with a preset."""
    return {**OPTIMIZERS, **TUNED.get(preset, {})}
