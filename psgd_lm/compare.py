"""One task under several optimizers, learning rates and seeds, with the same budget for each."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from psgd_lm.config import TrainConfig
from psgd_lm.data import load_data
from psgd_lm.picture import draw_curves
from psgd_lm.presets import PRESETS, TUNED
from psgd_lm.report import Member, Row, comparison_table, make_rows
from psgd_lm.train import DivergedError, train
from psgd_optim.config import OPTIMIZERS
from psgd_optim.tools.names import closest
from psgd_optim.tools.run_folder import LAST, METRICS, SUMMARY, RunFolder, read_json, write_json
from psgd_optim.tools.runtime import Interrupt, resolve_device
from psgd_optim.types import InputError

TABLE, PICTURE, FIGURES = "comparison.md", "curves.png", "comparison.json"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Which runs to compare; all other flags are those of train_lm.py and hold for every run."""

    optimizers: tuple[str, ...] = ("psgd", "adamw")
    """Optimizers by name, each with the settings that the preset has for it."""
    lrs: tuple[float, ...] = ()
    """Learning rates to try with every optimizer; none takes each optimizer's own."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of every run; the table shows means over them."""
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
        for optimizer in self.optimizers:
            if optimizer not in OPTIMIZERS:
                raise InputError(
                    f"There is no optimizer {optimizer!r}; {closest(optimizer, list(OPTIMIZERS))}"
                )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a comparison came to, or the part of it until an interruption."""

    status: str
    """`finished` or `interrupted`."""
    run_dir: Path
    rows: tuple[Row, ...]
    """One per optimizer and learning rate, best first."""
    table: str
    """Markdown; empty if interrupted."""


def members(preset: str, task: TrainConfig, grid: Grid) -> dict[str, TrainConfig]:
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
    if (task.optim, task.seed) != (PRESETS[preset].optim, PRESETS[preset].seed):
        raise InputError(
            "Got --optim or --seed for a comparison; give --optimizers, --lrs and --seeds."
        )
    runs: dict[str, TrainConfig] = {}
    for name in grid.optimizers:
        own = TUNED.get(preset, {}).get(name, OPTIMIZERS[name])
        for lr in grid.lrs or (own.lr,):
            for seed in grid.seeds:
                run = f"{name}-lr{lr:g}-seed{seed}"
                if run in runs:
                    raise InputError(f"The run {run} is asked for twice; name each value once.")
                runs[run] = replace(task, optim=replace(own, lr=lr), seed=seed)
    return runs


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What the comparison's folder records; each run's own folder has its settings."""

    members: tuple[str, ...]


def compare(
    configs: Mapping[str, TrainConfig],
    run_dir: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Comparison:
    """Train every run, one after the other, and write table, picture and figures.

    A run that diverges is reported as such. SIGINT or SIGTERM saves the run at work and returns.

    Args:
        configs: The runs by name; each is written to the folder of that name in `run_dir`.
        run_dir: The comparison's folder.
        resume: Go on with the comparison in the folder.
        overwrite: Delete the comparison in the folder first.

    Returns:
        The figures.
    """
    with Interrupt() as interrupt:
        for data, context, device in {
            (c.data, c.model.context, c.device) for c in configs.values()
        }:
            load_data(data, context)
            resolve_device(device)
        RunFolder(
            run_dir,
            "comparison",
            _Plan(members=tuple(configs)),
            resume=resume,
            overwrite=overwrite,
        )
        done = []
        for name, config in configs.items():
            if interrupt.requested or not _train_member(config, run_dir / name):
                return Comparison(status="interrupted", run_dir=run_dir, rows=(), table="")
            done.append(_read_member(name, config, run_dir / name))
        return _report(done, run_dir)


def _train_member(config: TrainConfig, folder: Path) -> bool:
    """Train or go on training; return whether the run came to its end, good or bad."""
    has_checkpoint = (folder / LAST).is_file()
    try:
        result = train(
            replace(config, run_dir=folder, resume=has_checkpoint, overwrite=not has_checkpoint)
        )
    except DivergedError:
        return True
    return result.status == "finished"


def _read_member(name: str, config: TrainConfig, folder: Path) -> Member:
    """Read back what a run wrote."""
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return Member(
        name=name,
        optimizer=config.optim.name,
        lr=config.optim.lr,
        summary=read_json(folder / SUMMARY),
        evaluations=[record for record in records if "validation/loss" in record],
    )


def _report(done: Sequence[Member], run_dir: Path) -> Comparison:
    rows = make_rows(done)
    floor = done[0].summary["zlib_bits_per_byte"]
    table = comparison_table(rows, floor)
    curves = [row.curve for row in rows if row.curve is not None]
    draw_curves(curves, floor, run_dir / PICTURE)
    (run_dir / TABLE).write_text(table + "\n", encoding="utf-8")
    figures: dict[str, Any] = {
        "status": "finished",
        "rows": [row.figures() for row in rows],
        "members": {member.name: dict(member.summary) for member in done},
    }
    write_json(run_dir / FIGURES, figures)
    return Comparison(status="finished", run_dir=run_dir, rows=tuple(rows), table=table)
