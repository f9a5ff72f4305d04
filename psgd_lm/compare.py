"""One task under several optimizers, learning rates and seeds, with the same budget for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from psgd_lm.config import TrainConfig
from psgd_lm.data import load_data
from psgd_lm.entries import LMGrid, Run
from psgd_lm.picture import Family, Level, draw_curves
from psgd_lm.report import Goal, comparison_table, find_goal
from psgd_lm.rows import LMMember, Row, best_rows, make_rows, with_target
from psgd_lm.saved_run import KIND
from psgd_lm.train import DivergedError, train
from psgd_optim.tools.comparison import (
    FIGURES,
    TABLE,
    failures,
    read_member,
    train_members,
    write_hparams,
)
from psgd_optim.tools.run_folder import write_json
from psgd_optim.tools.runtime import Interrupt, resolve_device

PICTURE = "curves.png"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a comparison came to, or the part of it until an interruption."""

    status: str
    """`finished` or `interrupted`."""
    run_dir: Path
    rows: tuple[Row, ...] = ()
    """One per optimizer, learning rate and weight decay, best first."""
    table: str = ""
    """Markdown; empty if interrupted."""
    failures: tuple[str, ...] = ()
    """A line on every run that ended by an error."""


def compare(runs: Mapping[str, Run], grid: LMGrid) -> Comparison:
    """Train every run, and write table, picture and figures.

    A run that diverges is reported as such, and one that cannot go on. SIGINT or SIGTERM saves the
    runs at work and returns.

    Args:
        runs: By name; each is written to the folder of that name in the grid's `run_dir`.
        grid: The comparison's folder and what its runs are held against.

    Returns:
        The figures.
    """
    run_dir = grid.run_dir
    with Interrupt() as interrupt:
        for data, context, device in {
            (c.data, c.model.context, c.device) for c in (run.config for run in runs.values())
        }:
            load_data(data, context)
            resolve_device(device)
        configs = {name: run.config for name, run in runs.items()}
        if not train_members(configs, grid, KIND, train_member, interrupt):
            return Comparison(status="interrupted", run_dir=run_dir)
        done = [_read_member(name, run, run_dir) for name, run in runs.items()]
        return _report(done, grid)


def train_member(config: TrainConfig, folder: Path, resume: bool) -> bool:
    """Train or go on training.

    Args:
        config: The run.
        folder: Where it is written.
        resume: Whether it is there already.

    Returns:
        Whether the run came to its end, good or bad.
    """
    try:
        result = train(replace(config, run_dir=folder, resume=resume, overwrite=not resume))
    except DivergedError:
        return True
    return result.status == "finished"


def _read_member(name: str, run: Run, run_dir: Path) -> LMMember:
    """Read back what a run wrote."""
    lr = run.config.optim.lr
    member = read_member(run_dir, name, optimizer=run.entry, lr=lr, figure="validation/loss")
    return LMMember(**vars(member), weight_decay=run.weight_decay)


def _report(done: Sequence[LMMember], grid: LMGrid) -> Comparison:
    run_dir = grid.run_dir
    rows = make_rows(done)
    goal = find_goal(rows, grid.baseline, grid.target)
    if goal:
        rows = [with_target(row, goal.loss) for row in rows]
    floor = next((m.summary["zlib_bits_per_byte"] for m in done if m.summary), 0.0)
    failed = failures(done)
    table = "\n".join([comparison_table(rows, goal, floor, workers=grid.workers), *failed])
    _draw(rows, goal, floor, run_dir / PICTURE)
    (run_dir / TABLE).write_text(table + "\n", encoding="utf-8")
    figures: dict[str, Any] = {
        "status": "finished",
        "target": goal and {"loss": goal.loss, "about": goal.about},
        "rows": [row.figures() for row in rows],
        "failures": failed,
        "members": {member.name: dict(member.summary) for member in done},
    }
    write_json(run_dir / FIGURES, figures)
    write_hparams(run_dir, {m.name: _hparams(m) for m in done if m.status == "finished"})
    return Comparison(
        status="finished",
        run_dir=run_dir,
        rows=tuple(rows),
        table=table,
        failures=tuple(failed),
    )


def _draw(rows: Sequence[Row], goal: Goal | None, floor: float, path: Path) -> None:
    families = []
    for best in best_rows(rows):
        if best.curve is not None:
            same = [row for row in rows if row.optimizer == best.optimizer and row is not best]
            others = [row.curve for row in same if row.curve is not None]
            families.append(Family(best=best.curve, others=others))
    levels = [Level(label=f"target {goal.loss:.4f}", loss=goal.loss, style="--")] if goal else []
    finished = [row for row in rows if row.finished]
    if finished:
        nats = finished[0].val_loss.value / finished[0].bits_per_byte  # per token, by bits per byte
        levels.append(Level(label="zlib -9", loss=floor * nats))
    draw_curves(families, levels, path)


def _hparams(member: LMMember) -> tuple[dict[str, Any], dict[str, float]]:
    """Return what runs differ in and what they came to."""
    settings = {
        "optimizer": member.optimizer,
        "lr": member.lr,
        "weight_decay": member.weight_decay or 0.0,
        "seed": member.summary["seed"],
    }
    names = ("val_loss", "bits_per_byte", "ms_per_step")
    return settings, {name: member.summary[name] for name in names}
