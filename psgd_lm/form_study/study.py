"""Runs the measurements: learning rates, seeds, times, sizes; writes them as they come."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch

from psgd_lm.form_study import memory, rosenbrock, sparse, text
from psgd_lm.form_study.table import markdown
from psgd_lm.form_study.trial import (
    Candidate,
    Optimizers,
    Problem,
    Trial,
    advance,
    state_share,
    train,
)
from psgd_optim.tools.names import closest
from psgd_optim.tools.run_folder import read_json, write_json
from psgd_optim.tools.runtime import torch_threads
from psgd_optim.types import InputError

PROBLEMS = {"text": text.PROBLEM, "memory": memory.PROBLEM, "sparse": sparse.PROBLEM}
ROSENBROCK = "rosenbrock"
CHOICE_SEED = 0
SEEDS = (1, 2, 3)
"""Seeds of the figures; none of them has chosen a learning rate."""
_WARM_UP, _TIMED = 3, 5  # steps before the first measurement, and in each
Record = dict[str, Any]
"""JSON values."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What to measure."""

    problems: tuple[str, ...] = (*PROBLEMS, ROSENBROCK)
    """Which problems; others that the file already has are kept."""
    candidates: tuple[str, ...] = ()
    """Names of candidates besides each problem's first one; none takes all."""
    steps: int = 0
    """Steps of every run; 0 takes each problem's own."""
    lrs: tuple[float, ...] = ()
    """Learning rates for all candidates; none takes the problem's and the candidates' own."""
    repeats: int = 9
    """Repeats of every time measurement."""
    out: Path = Path("results/forms.json")
    """File to write; the table goes beside it as Markdown."""

    def __post_init__(self) -> None:
        known = [*PROBLEMS, ROSENBROCK]
        for name in self.problems:
            if name not in known:
                raise InputError(f"There is no problem {name!r}; {closest(name, known)}")
        names = [c.name for p in PROBLEMS.values() for c in p.candidates] + [*rosenbrock.FORMS]
        for name in self.candidates:
            if name not in names:
                raise InputError(f"There is no candidate {name!r}; {closest(name, names)}")
        if self.steps < 0 or self.repeats < 1:
            raise InputError(
                f"Got steps {self.steps} and repeats {self.repeats}; give --steps 0 or more and "
                "--repeats 1 or more."
            )


def run_study(config: StudyConfig, command: str, say: Callable[[str], None]) -> str:
    """Measure, on one thread, and write what there is after every candidate.

    Args:
        config: What to measure.
        command: How it was called, for the record.
        say: Takes a line on progress.

    Returns:
        The tables, Markdown.
    """
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with torch_threads(1):
        for name in config.problems:
            start = time.process_time()
            record: Record = {"facts": _facts(command, config), "rows": []}

            def keep(row: Record, name: str = name, record: Record = record) -> None:
                record["rows"].append(row)
                _write(config.out, name, record)
                say(f"{name}: {row['name']}")

            if name == ROSENBROCK:
                _measure_rosenbrock(config, record, keep)
            else:
                _measure_problem(PROBLEMS[name], config, record, keep)
            record["cpu_seconds"] = round(time.process_time() - start, 1)
            _write(config.out, name, record)
    results = read_json(config.out)
    table = markdown([results[name] for name in (*PROBLEMS, ROSENBROCK) if name in results])
    config.out.with_suffix(".md").write_text(table + "\n", encoding="utf-8")
    return table


def _write(out: Path, name: str, record: Record) -> None:
    """Put a problem's record into the file, beside those that another process may have written."""
    write_json(out, {**(read_json(out) if out.exists() else {}), name: record})


def _facts(command: str, config: StudyConfig) -> Record:
    """Return what the figures depend on; no names of hosts or folders."""
    return {
        "command": command,
        "config": {k: v for k, v in asdict(config).items() if k != "out"},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "threads": 1,
        "seeds": {"choice": CHOICE_SEED, "figures": list(SEEDS)},
    }


def _chosen(problem: Problem, config: StudyConfig) -> Sequence[Candidate]:
    first, *rest = problem.candidates
    return [first, *(c for c in rest if not config.candidates or c.name in config.candidates)]


def _measure_problem(
    problem: Problem, config: StudyConfig, record: Record, keep: Callable[[Record], None]
) -> None:
    """Train every candidate, then time them all in turns."""
    steps = config.steps or problem.steps
    record |= {"about": problem.about, "steps": steps}
    chosen = _chosen(problem, config)
    for candidate in chosen:
        lrs = config.lrs or candidate.lrs or problem.lrs
        keep(_train_candidate(problem, candidate, lrs, steps))
    for gate, name in ((1.0, "fitting"), (0.0, "between fits")):
        for row, times in zip(
            record["rows"], _time(problem, chosen, gate, config.repeats), strict=True
        ):
            row.setdefault("ms", {})[name] = times


def _train_candidate(
    problem: Problem, candidate: Candidate, lrs: Sequence[float], steps: int
) -> Record:
    """Choose the learning rate with one seed, and train with others."""

    def run(seed: int, lr: float) -> float:
        trial, optimizers = _start(problem, candidate, seed, lr, 1.0)
        return train(trial, optimizers, steps)

    grid = {lr: run(CHOICE_SEED, lr) for lr in lrs}
    best = min(grid, key=lambda lr: grid[lr])
    losses = [run(seed, best) for seed in SEEDS]
    finite = all(loss < float("inf") for loss in losses)
    trial, optimizers = _start(problem, candidate, CHOICE_SEED, best, 1.0)
    train(trial, optimizers, 1)
    return {
        "name": candidate.name,
        "lr": best,
        "grid": [[lr, _json(loss)] for lr, loss in grid.items()],
        "losses": [_json(loss) for loss in losses],
        "mean": mean(losses) if finite else None,
        "std": stdev(losses) if finite else None,
        "state_bytes_per_parameter_byte": round(state_share(optimizers), 4),
    }


def _start(
    problem: Problem, candidate: Candidate, seed: int, lr: float, gate: float
) -> tuple[Trial, Optimizers]:
    trial = problem.start(seed, candidate.prepare)
    return trial, candidate.build(trial.model, lr, gate)


def _json(loss: float) -> float | None:
    return loss if loss < float("inf") else None


def _time(problem: Problem, chosen: Sequence[Candidate], gate: float, repeats: int) -> list[Record]:
    """Return CPU milliseconds per step, all candidates taking turns."""
    racers = [_start(problem, c, CHOICE_SEED, 1e-4, gate) for c in chosen]
    for trial, optimizers in racers:
        for step in range(_WARM_UP):
            advance(optimizers, partial(trial.loss, step))
    times: list[list[float]] = [[] for _ in racers]
    for repeat in range(repeats):
        for (trial, optimizers), mine in zip(racers, times, strict=True):
            begin = time.process_time()
            for step in range(_TIMED):
                number = _WARM_UP + repeat * _TIMED + step
                advance(optimizers, partial(trial.loss, number))
            mine.append(1000 * (time.process_time() - begin) / _TIMED)
    first = median(times[0])
    return [
        {"median": median(t), "min": min(t), "max": max(t), "ratio": median(t) / first}
        for t in times
    ]


def _measure_rosenbrock(
    config: StudyConfig, record: Record, keep: Callable[[Record], None]
) -> None:
    most = config.steps or rosenbrock.MOST
    record |= {"about": "Rosenbrock's function, Newton; steps to 1e-10", "steps": most}
    for name in rosenbrock.FORMS:
        if not config.candidates or name in config.candidates:
            steps = rosenbrock.measure(name, range(1, 11), most)
            keep({"name": name, "iterations": steps})
