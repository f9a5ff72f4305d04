"""The runs of a comparison: optimizers with their settings, times learning rates and seeds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from psgd_lm.config import TrainConfig
from psgd_lm.grids import GRIDS
from psgd_lm.presets import PRESETS, TUNED
from psgd_lm.tuned import COMMON
from psgd_optim.config import OPTIMIZERS
from psgd_optim.tools.names import closest
from psgd_optim.types import InputError


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Which runs to compare; all other flags are those of train_lm.py and hold for every run."""

    optimizers: tuple[str, ...] = ("psgd", "adamw")
    """Optimizers by name, each with the settings that the preset has for it. NAME:1e-3,2e-3 has
    learning rates of its own, NAME@0.45 a run of 0.45 of the length with its own schedule;
    NAME:1e-3@0.45 both."""
    lrs: tuple[float, ...] = ()
    """Learning rates to try with every optimizer that names none; none takes its own."""
    grid: bool = False
    """Try three learning rates: the preset's for each optimizer, or half, all and twice its own."""
    weight_decays: tuple[float, ...] = ()
    """Weight decays to try with every learning rate; none takes each optimizer's own."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of every run; the table shows means over them."""
    baseline: str = "adamw"
    """Optimizer that the others are held against, if it is in the comparison."""
    target: float | None = None
    """Validation loss in nats per token to be reached; None takes the baseline's final one."""
    workers: int = 1
    """Runs at a time, each with --threads of its own."""
    run_dir: Path = Path("runs/compare")
    """Folder that the comparison and its runs are written to."""
    resume: bool = False
    """Go on with the comparison in the folder; runs that are finished are kept."""
    overwrite: bool = False
    """Delete the comparison in the folder first."""

    def __post_init__(self) -> None:
        for name in ("optimizers", "seeds"):
            if not getattr(self, name):
                raise InputError(f"Got no {name}; give --{name} one or more.")
        if self.workers < 1:
            raise InputError(f"Got workers {self.workers}; give --workers 1 or more.")
        if self.target is not None and not math.isfinite(self.target):
            raise InputError(f"Got target {self.target}; give --target a loss in nats per token.")
        if self.grid and self.lrs:
            raise InputError("Got --grid and --lrs; give one of them.")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One optimizer of a comparison."""

    name: str
    """Of its settings."""
    lrs: tuple[float, ...] = ()
    """Its own learning rates; none for those of the grid."""
    fraction: float = 1.0
    """Of the steps, with a schedule for that length."""

    @property
    def label(self) -> str:
        """What the comparison calls it."""
        return self.name if self.fraction == 1 else f"{self.name}@{self.fraction:g}"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a comparison."""

    entry: str
    """The label of its optimizer."""
    weight_decay: float | None
    """None for an optimizer that has none."""
    config: TrainConfig


def parse_entry(text: str, known: Mapping[str, object]) -> Entry:
    """Read one of `--optimizers`.

    Args:
        text: `NAME[:LR,LR...][@FRACTION]`.
        known: Settings by name.

    Returns:
        The entry.

    Raises:
        InputError: If the name is not known or a number is none.

    >>> parse_entry("psgd:1e-3,2e-3@0.45", {"psgd": None})
    Entry(name='psgd', lrs=(0.001, 0.002), fraction=0.45)
    """
    rest, at, part = text.partition("@")
    name, colon, rates = rest.partition(":")
    if name not in known:
        raise InputError(f"There is no optimizer {name!r}; {closest(name, list(known))}")
    try:
        lrs = tuple(float(lr) for lr in rates.split(",")) if colon else ()
        fraction = float(part) if at else 1.0
    except ValueError as error:
        raise InputError(
            f"Got the optimizer {text!r}; write it NAME:1e-3,2e-3@0.45, or without its parts."
        ) from error
    if not 0 < fraction <= 1:
        raise InputError(f"Got the optimizer {text!r}; give a fraction above 0 and up to 1.")
    return Entry(name=name, lrs=lrs, fraction=fraction)


def members(preset: str, task: TrainConfig, grid: Grid) -> dict[str, Run]:
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
        for lr in entry.lrs or grid.lrs or _grid_of(preset, entry.name, started, grid.grid):
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


def _grid_of(preset: str, name: str, config: TrainConfig, several: bool) -> tuple[float, ...]:
    lr = config.optim.lr
    return GRIDS.get(preset, {}).get(name, (lr / 2, lr, 2 * lr)) if several else (lr,)


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
