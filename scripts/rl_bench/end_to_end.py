"""Whole training runs: our PPO with two optimizers beside stable-baselines3's, in turns."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from psgd_optim.tools.names import closest
from psgd_optim.tools.runtime import check_threads
from psgd_optim.types import InputError
from rl_bench.report import write
from rl_bench.worker import CONTENDERS

ROOT = Path(__file__).parents[2]
PRESET = "halfcheetah"


@dataclass(frozen=True, kw_only=True)
class EndToEndConfig:
    """Time whole training runs, each in a process of its own, all of them in turns."""

    steps: int = 20_000
    """Environment steps of a run, at least."""
    threads: int = 1
    """Threads that step our environments; torch has one everywhere."""
    repeats: int = 5
    """Runs of every contender."""
    contenders: tuple[str, ...] = CONTENDERS
    """Who runs, the measure of the others first."""
    busy: bool = False
    """Keep one core busy with another process meanwhile."""
    out: Path = Path("runs/bench_rl_end_to_end")
    """Figures are written to OUT.json and OUT.md."""

    def __post_init__(self) -> None:
        check_threads("--threads", self.threads)
        for name in ("steps", "repeats"):
            if getattr(self, name) < 1:
                raise InputError(f"Got {name} = {getattr(self, name)}; give 1 or more.")
        for name in self.contenders:
            if name not in CONTENDERS:
                raise InputError(f"There is no contender {name!r}; {closest(name, CONTENDERS)}")


def run_end_to_end(config: EndToEndConfig, command: str, tell: Callable[[str], None]) -> str:
    """Measure, and write the figures.

    Args:
        config: What to measure.
        command: What was typed, for the record.
        tell: Takes a line whenever a run is done.

    Returns:
        The table as Markdown.
    """
    speeds: dict[str, list[float]] = {name: [] for name in config.contenders}
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if config.busy else None
    try:
        for number in range(config.repeats):
            for name, samples in speeds.items():
                samples.append(run_worker(name, config, number))
                tell(f"{name}, run {number + 1} of {config.repeats}: {samples[-1]:,.0f} steps/s")
    finally:
        if busy is not None:
            busy.kill()
            busy.wait()
    settings = {"steps": config.steps, "threads": config.threads, "busy": config.busy}
    return write(config.out, command, settings, speeds)


def run_worker(name: str, config: EndToEndConfig, seed: int) -> float:
    """Run one contender once in a process of its own.

    Args:
        name: The contender.
        config: Steps and threads.
        seed: Of the run.

    Returns:
        Environment steps per second.

    Raises:
        InputError: If it fails, with the last line of what it said.
    """
    path = os.pathsep.join([str(ROOT), str(ROOT / "scripts")])
    arguments = [name, PRESET, str(config.steps), str(seed), str(config.threads)]
    done = subprocess.run(
        [sys.executable, "-m", "rl_bench.worker", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise InputError(f"{name} failed: {last}; leave it out of --contenders, or install it.")
    return float(json.loads(done.stdout.splitlines()[-1])["steps_per_second"])
