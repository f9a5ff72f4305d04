"""One task under several optimizers, learning rates and seeds, with the same budget for each."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from psgd_lm.config import TrainConfig
from psgd_lm.data import load_data
from psgd_lm.entries import Grid, Run
from psgd_lm.picture import Family, Level, draw_curves
from psgd_lm.report import Goal, comparison_table, failures, find_goal
from psgd_lm.rows import Member, Row, best_rows, make_rows, with_target
from psgd_lm.saved_run import KIND
from psgd_lm.train import DivergedError, train
from psgd_optim.tools.run_folder import LAST, METRICS, SUMMARY, RunFolder, read_json, write_json
from psgd_optim.tools.runtime import Interrupt, resolve_device
from psgd_optim.tools.workers import log_path, run_jobs
from psgd_optim.types import InputError

TABLE, PICTURE, FIGURES, LOGS = "comparison.md", "curves.png", "comparison.json", "logs"
KILLED = "it was killed"
ENDED = ("finished", "diverged")
"""What a run's summary says of a run that needs no more training."""


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


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What the comparison's folder records; each run's own folder has its settings."""

    members: tuple[str, ...]


def compare(runs: Mapping[str, Run], grid: Grid) -> Comparison:
    """Train every run, and write table, picture and figures.

    A run that diverges is reported as such, and with several workers one that crashes. SIGINT or
    SIGTERM saves the runs at work and returns.

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
        RunFolder(
            run_dir,
            "comparison",
            _Plan(members=tuple(runs)),
            resume=grid.resume,
            overwrite=grid.overwrite,
        )
        left = [name for name, run in runs.items() if not _has_ended(run.config, run_dir / name)]
        jobs = {name: partial(train_member, runs[name].config, run_dir / name) for name in left}
        if grid.workers == 1:
            for job in jobs.values():
                if interrupt.requested or not job():
                    return Comparison(status="interrupted", run_dir=run_dir)
        else:
            run_jobs(jobs, grid.workers, run_dir / LOGS, interrupt)
            if interrupt.requested:
                return Comparison(status="interrupted", run_dir=run_dir)
        done = [_read_member(name, run, run_dir) for name, run in runs.items()]
        return _report(done, grid)


def train_member(config: TrainConfig, folder: Path) -> bool:
    """Train or go on training.

    Args:
        config: The run.
        folder: Where it is written.

    Returns:
        Whether the run came to its end, good or bad.
    """
    has_checkpoint = (folder / LAST).is_file()
    try:
        result = train(
            replace(config, run_dir=folder, resume=has_checkpoint, overwrite=not has_checkpoint)
        )
    except DivergedError:
        return True
    return result.status == "finished"


def _has_ended(config: TrainConfig, folder: Path) -> bool:
    """Whether a run is over; refuses a folder with a run of other settings."""
    if not (folder / LAST).is_file():
        return False
    RunFolder(folder, KIND, replace(config, run_dir=folder), resume=True)
    is_written = (folder / SUMMARY).is_file()
    return is_written and read_json(folder / SUMMARY)["status"] in ENDED


def _read_member(name: str, run: Run, run_dir: Path) -> Member:
    """Read back what a run wrote."""
    folder = run_dir / name
    summary = read_json(folder / SUMMARY) if (folder / SUMMARY).is_file() else {}
    status, failure = summary.get("status"), ""
    if status not in ENDED:
        # Without an evaluation, a run that diverged has no summary either, but no worker's log.
        log = log_path(run_dir / LOGS, name)
        lines = (
            log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
        )
        said = [line for line in lines if line.strip()]
        status = "failed" if log.exists() else "diverged"
        # Where input was bad, the line says all; other exceptions have a name to look up.
        last = said[-1].removeprefix(f"{InputError.__module__}.InputError: ") if said else KILLED
        failure = f"{last} ({log})" if log.exists() else ""
    return Member(
        name=name,
        optimizer=run.entry,
        lr=run.config.optim.lr,
        weight_decay=run.weight_decay,
        status=status,
        failure=failure,
        summary=summary,
        evaluations=_evaluations(folder / METRICS),
    )


def _evaluations(log: Path) -> list[dict[str, Any]]:
    if not log.is_file():
        return []
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [record for record in records if "validation/loss" in record]


def _report(done: Sequence[Member], grid: Grid) -> Comparison:
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
    _write_hparams(done, run_dir)
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


def _write_hparams(done: Sequence[Member], run_dir: Path) -> None:
    """Write the final figures for TensorBoard's table of hyper-parameters."""
    with SummaryWriter(str(run_dir)) as writer:
        for member in done:
            if member.status == "finished":
                settings = {
                    "optimizer": member.optimizer,
                    "lr": member.lr,
                    "weight_decay": member.weight_decay or 0.0,
                    "seed": member.summary["seed"],
                }
                names = ("val_loss", "bits_per_byte", "ms_per_step")
                metrics = {f"final/{name}": member.summary[name] for name in names}
                writer.add_hparams(settings, metrics, run_name=f"hparams/{member.name}")
