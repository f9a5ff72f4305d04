"""The runs of a comparison: optimizers with their settings, times learning rates and seeds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from psgd_lm.config import TrainConfig
from psgd_lm.grids import GRIDS
from psgd_lm.presets import PRESETS, TUNED
from psgd_lm.tuned import COMMON
from psgd_optim.config import OPTIMIZERS
from psgd_optim.tools.grid import Grid, parse_entry
from psgd_optim.types import InputError


@dataclass(frozen=True, kw_only=True)
class LMGrid(Grid):
    """Which runs to compare; all other flags are those of train_lm.py and hold for every run."""

    weight_decays: tuple[float, ...] = ()
    """Weight decays to try with every learning rate; none takes each optimizer's own."""
    target: float | None = None
    """Validation loss in nats per token to be reached; None takes the baseline's final one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target is not None and not math.isfinite(self.target):
            raise InputError(f"Got target {self.target}; give --target a loss in nats per token.")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a comparison."""

    entry: str
    """The label of its optimizer."""
    weight_decay: float | None
    """None for an optimizer that has none."""
    config: TrainConfig


def members(preset: str, task: TrainConfig, grid: LMGrid) -> dict[str, Run]:
    """Lay out the runs of a comparison.

    Args:
        preset: The preset that the task was made from; optimizers take their settings for it.
        task: What all runs share; its optimizer and seed are replaced.
        grid: Which optimizers, learning rates and seeds.

    Returns:
        The runs by name.

    Raises:
        InputError: If two runs are the same, or the task has its own optimizer or seed.
    """
    known = known_optimizers(preset)
    base = _without_optimizer(preset, task)
    runs: dict[str, Run] = {}
    for text in grid.optimizers:
        entry = parse_entry(text, known)
        settings = _settings(known[entry.name])
        if entry.name not in TUNED.get(preset, {}):
            settings = _but_for_flags(settings, preset, task)
        started = _shortened(replace(base, **settings), entry.fraction)
        tuned = GRIDS.get(preset, {})
        for lr in grid.learning_rates(entry, started.optim.lr, tuned):
            for decay in grid.weight_decays or (None,):
                config = _with_rates(started, lr, decay)
                for seed in grid.seeds:
                    name = _run_name(entry.label, lr, decay, seed)
                    if name in runs:
                        raise InputError(
                            f"The run {name} is asked for twice; name each value once."
                        )
                    runs[name] = Run(
                        entry=entry.label,
                        weight_decay=getattr(config.optim, "weight_decay", None),
                        config=replace(config, seed=seed),
                    )
    return runs


def known_optimizers(preset: str) -> dict[str, object]:
    """Return what the names of `--optimizers` stand for with a preset."""
    return {**OPTIMIZERS, **COMMON, **TUNED.get(preset, {})}


def _settings(entry: object) -> dict[str, Any]:
    """Return the fields of `TrainConfig` that an entry sets: several, or the optimizer alone."""
    if isinstance(entry, Mapping):
        return dict(entry)
    return {"optim": entry() if callable(entry) else entry}


def _but_for_flags(settings: Mapping[str, Any], preset: str, task: TrainConfig) -> dict[str, Any]:
    """Return the optimizer, and those settings beside it that no flag holds for every run."""
    default = PRESETS[preset]
    return {
        name: value
        for name, value in settings.items()
        if name == "optim" or getattr(task, name) == getattr(default, name)
    }


def _fields(entry: object) -> set[str]:
    """Return their names, without importing an optimizer that nobody asked for."""
    return set(entry) if isinstance(entry, Mapping) else {"optim"}


def _without_optimizer(preset: str, task: TrainConfig) -> TrainConfig:
    """Return the task with the defaults in every field that the preset has per optimizer."""
    own = {"optim"}.union(*(_fields(entry) for entry in TUNED.get(preset, {}).values()))
    for name in sorted(own | {"seed"}):
        if getattr(task, name) != getattr(PRESETS[preset], name):
            raise InputError(
                f"Got {_flag(name)} for a comparison; give --optimizers, --lrs and --seeds."
            )
    defaults = TrainConfig()
    return replace(task, **{name: getattr(defaults, name) for name in own})


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _shortened(config: TrainConfig, fraction: float) -> TrainConfig:
    """Return the run with a part of its steps or epochs; its schedule ends with them."""
    if fraction == 1:
        return config
    steps, epochs = round(fraction * config.steps), fraction * config.epochs
    return replace(config, steps=steps, epochs=epochs)


def _with_rates(config: TrainConfig, lr: float, decay: float | None) -> TrainConfig:
    changes: dict[str, Any] = {"lr": lr}
    if decay is not None:
        if "weight_decay" not in {field.name for field in fields(config.optim)}:
            raise InputError(
                f"{config.optim.name} has no weight_decay; leave --weight-decays away."
            )
        changes["weight_decay"] = decay
    return replace(config, optim=replace(config.optim, **changes))


def _run_name(label: str, lr: float, decay: float | None, seed: int) -> str:
    weight_decay = "" if decay is None else f"-wd{decay:g}"
    return f"{label}-lr{lr:g}{weight_decay}-seed{seed}"
