"""One task under several optimizers, learning rates and seeds, with the same budget for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from psgd_optim.tools.comparison import (
    FIGURES,
    TABLE,
    Member,
    failures,
    read_member,
    read_metrics,
    train_members,
    write_hparams,
)
from psgd_optim.tools.run_folder import write_json
from psgd_optim.tools.runtime import Interrupt, resolve_device
from psgd_rl.config import TrainConfig
from psgd_rl.entries import RLGrid, Run
from psgd_rl.evaluate import KIND
from psgd_rl.picture import draw_curves, draw_efficiency
from psgd_rl.report import comparison_table
from psgd_rl.rows import RETURN, SECONDS, Row, best_rows, find_baseline, make_rows
from psgd_rl.train import train

CURVES, EFFICIENCY = "curves.png", "efficiency.png"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a comparison came to, or the part of it until an interruption."""

    status: str
    """`finished` or `interrupted`."""
    run_dir: Path
    rows: tuple[Row, ...] = ()
    """One per optimizer and learning rate, best first."""
    table: str = ""
    """Markdown; empty if interrupted."""


def compare(runs: Mapping[str, Run], grid: RLGrid) -> Comparison:
    """Train every run, and write table, pictures and figures.

    A run that cannot go on is reported as such. SIGINT or SIGTERM saves the runs at work and
    returns.

    Args:
        runs: By name; each is written to the folder of that name in the grid's `run_dir`.
        grid: The comparison's folder and what its runs are held against.

    Returns:
        The figures.
    """
    with Interrupt() as interrupt:
        for device in {run.config.device for run in runs.values()}:
            resolve_device(device)
        configs = {name: run.config for name, run in runs.items()}
        if not train_members(configs, grid, KIND, train_member, interrupt):
            return Comparison(status="interrupted", run_dir=grid.run_dir)
        return _report([_read(name, run, grid.run_dir) for name, run in runs.items()], grid)


def train_member(config: TrainConfig, folder: Path, resume: bool) -> bool:
    """Train or go on training.

    Args:
        config: The run.
        folder: Where it is written.
        resume: Whether it is there already.

    Returns:
        Whether the run came to its end.
    """
    result = train(replace(config, run_dir=folder, resume=resume, overwrite=not resume))
    return result.status == "finished"


def _read(name: str, run: Run, run_dir: Path) -> Member:
    """Read back what a run wrote, each evaluation with the seconds before it."""
    lr = run.config.actor.lr
    member = read_member(run_dir, name, optimizer=run.entry, lr=lr, figure=RETURN)
    # Steps per second are of the run so far, evaluations included.
    seconds = {
        record["step"]: record["step"] / record["charts/SPS"]
        for record in read_metrics(run_dir / name)
        if "charts/SPS" in record
    }
    evaluations = [{**record, SECONDS: seconds[record["step"]]} for record in member.evaluations]
    return replace(member, evaluations=evaluations)


def _report(done: Sequence[Member], grid: RLGrid) -> Comparison:
    run_dir = grid.run_dir
    rows = make_rows(done)
    baseline = find_baseline(rows, grid.baseline)
    failed = failures(done)
    table = "\n".join([comparison_table(rows, baseline, workers=grid.workers), *failed])
    (run_dir / TABLE).write_text(table + "\n", encoding="utf-8")
    drawn = [row for row in best_rows(rows) if row.runs]
    draw_curves(drawn, run_dir / CURVES)
    draw_efficiency(drawn, run_dir / EFFICIENCY)
    figures = {
        "status": "finished",
        "baseline": baseline and baseline.label,
        "rows": [row.figures(baseline) for row in rows],
        "failures": failed,
        "members": {member.name: dict(member.summary) for member in done},
    }
    write_json(run_dir / FIGURES, figures)
    write_hparams(run_dir, {m.name: _hparams(m) for m in done if m.status == "finished"})
    return Comparison(status="finished", run_dir=run_dir, rows=tuple(rows), table=table)


def _hparams(member: Member) -> tuple[dict[str, Any], dict[str, float]]:
    """Return what runs differ in and what they came to."""
    settings = {
        "optimizer": member.optimizer,
        "lr": member.lr,
        "seed": member.summary["seed"],
    }
    names = ("return_mean", "steps_per_second", "seconds")
    return settings, {name: member.summary[name] for name in names}
