"""The runs of a comparison: trained one by one or several at a time, resumable, and read back."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch.utils.tensorboard import SummaryWriter

from psgd_optim.tools.grid import Grid
from psgd_optim.tools.run_folder import (
    CONFIG,
    LAST,
    METRICS,
    SUMMARY,
    RunFolder,
    read_json,
    write_json,
)
from psgd_optim.tools.runtime import Interrupt
from psgd_optim.tools.workers import log_path, run_jobs
from psgd_optim.types import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

KIND, LOGS = "comparison", "logs"
TABLE, FIGURES = "comparison.md", "comparison.json"
KILLED = "it was killed"
ENDED = ("finished", "diverged")
"""What a run's summary says of a run that needs no more training."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One run of a comparison, as it was written to its folder."""

    name: str
    optimizer: str
    """The label that the comparison has for it."""
    lr: float
    status: str
    """`finished`, `diverged` or `failed`."""
    failure: str
    """What a failed run said at last."""
    summary: Mapping[str, Any]
    evaluations: Sequence[Mapping[str, Any]]
    """The records of `metrics.jsonl` that hold an evaluation."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What the comparison's folder records; each run's own folder has its settings."""

    members: tuple[str, ...]


def train_members(
    configs: Mapping[str, Config],
    grid: Grid,
    kind: str,
    train: Callable[[Config, Path, bool], bool],
    interrupt: Interrupt,
) -> bool:
    """Train every run that has not come to its end.

    A run that cannot go on is left to `read_member`, and the others go on.

    Args:
        configs: The runs by name; each is written to the folder of that name.
        grid: The comparison's folder, and how many runs go on at a time.
        kind: Of the run folders.
        train: Trains a run into a folder, a new run or (`True`) the one that is there; returns
            whether it came to its end, good or bad. It can be pickled.
        interrupt: Of this process.

    Returns:
        Whether all came to their end, rather than to an interruption.
    """
    run_dir = grid.run_dir
    _open_folder(tuple(configs), grid)
    jobs = {
        name: partial(_train_member, train, config, run_dir / name)
        for name, config in configs.items()
        if not _has_ended(config, kind, run_dir / name)
    }
    if grid.workers > 1:
        run_jobs(jobs, grid.workers, run_dir / LOGS, interrupt)
        return not interrupt.requested
    for name, job in jobs.items():
        if interrupt.requested or not _run_here(job, log_path(run_dir / LOGS, name)):
            return False
    return True


def read_member(run_dir: Path, name: str, *, optimizer: str, lr: float, figure: str) -> Member:
    """Read back what a run wrote.

    Args:
        run_dir: The comparison's folder.
        name: The run's.
        optimizer: Its label.
        lr: Its learning rate.
        figure: A name that every logged evaluation has.

    Returns:
        The run, however it ended.
    """
    folder = run_dir / name
    summary = read_json(folder / SUMMARY) if (folder / SUMMARY).is_file() else {}
    status, failure = summary.get("status"), ""
    if status not in ENDED:
        # Without an evaluation, a run that diverged has no summary either, but no log of its own.
        log = log_path(run_dir / LOGS, name)
        status = "failed" if log.exists() else "diverged"
        failure = f"{_last_words(log)} ({log})" if log.exists() else ""
    return Member(
        name=name,
        optimizer=optimizer,
        lr=lr,
        status=status,
        failure=failure,
        summary=summary,
        evaluations=[r for r in read_metrics(folder) if figure in r],
    )


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return what a run has logged, in the order of the log; nothing if it has not."""
    log = folder / METRICS
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return [json.loads(line) for line in lines]


def failures(done: Sequence[Member]) -> list[str]:
    """Return a line on every run that failed."""
    return [f"{run.name} failed: {run.failure}" for run in done if run.status == "failed"]


def write_hparams(
    run_dir: Path, runs: Mapping[str, tuple[Mapping[str, Any], Mapping[str, float]]]
) -> None:
    """Write final figures for TensorBoard's table of hyper-parameters.

    Args:
        run_dir: The comparison's folder.
        runs: By name, what the runs differ in and what they came to.
    """
    with SummaryWriter(str(run_dir)) as writer:
        for name, (settings, figures) in runs.items():
            metrics = {f"final/{key}": value for key, value in figures.items()}
            writer.add_hparams(dict(settings), metrics, run_name=f"hparams/{name}")


def _open_folder(names: tuple[str, ...], grid: Grid) -> None:
    """Create the comparison's folder, or add to the runs that it was started with."""
    path = grid.run_dir
    planned = names
    if grid.resume and not grid.overwrite:
        planned = tuple(read_json(path / CONFIG).get("members", names))
        missing = [name for name in planned if name not in names]
        if missing:
            raise InputError(
                f"{path} was started with the run {missing[0]}; name all of its optimizers, "
                "learning rates and seeds again, or another --run-dir."
            )
    RunFolder(path, KIND, _Plan(members=planned), resume=grid.resume, overwrite=grid.overwrite)
    if planned != names:
        write_json(path / CONFIG, {"kind": KIND, "members": list(names)})


def _has_ended(config: "DataclassInstance", kind: str, folder: Path) -> bool:
    """Whether a run is over; refuses a folder with a run of other settings."""
    if not (folder / LAST).is_file():
        return False
    RunFolder(folder, kind, config, resume=True)
    is_written = (folder / SUMMARY).is_file()
    return is_written and read_json(folder / SUMMARY)["status"] in ENDED


def _train_member(
    train: Callable[[Config, Path, bool], bool], config: Config, folder: Path
) -> bool:
    return train(config, folder, (folder / LAST).is_file())


def _run_here(job: Callable[[], bool], log: Path) -> bool:
    """Run a job in this process, and keep its complaint as a worker would."""
    log.unlink(missing_ok=True)  # of a run that failed before it was resumed
    try:
        return job()
    except InputError as error:
        log.parent.mkdir(exist_ok=True)
        log.write_text(f"{error}\n", encoding="utf-8")
        return True


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line for line in lines if line.strip()]
    # Where input was bad, the line says all; other exceptions have a name to look up.
    return said[-1].removeprefix(f"{InputError.__module__}.InputError: ") if said else KILLED
