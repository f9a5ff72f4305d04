"""An agent to keep or to give away, with where it is from and what it is stated to reach.

A folder of two files, `AGENT` and `PROVENANCE`, that is written whole or not at all.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from psgd_optim.tools import source
from psgd_optim.tools.checkpoint import sync_folder, write_checkpoint
from psgd_optim.tools.run_folder import (
    BEST,
    LAST,
    RUN_CONTROL,
    SUMMARY,
    read_json,
    read_run,
    write_json,
)
from psgd_optim.types import InputError
from psgd_rl.config import FIRST_EVALUATION_SEED
from psgd_rl.evaluate import AGENT, KIND, PROVENANCE, Evaluation, is_exported

PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "psgd-toolkit")
"""What the return depends on."""

NORMAL_95 = 1.96
"""Standard errors to each side of a mean that 95 % of a normal distribution are within."""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """The return that an exported agent is stated to reach.

    Args:
        mean: Over the episodes of the export.
        low: Lower end of the mean's 95 % interval.
        high: Upper end.
        episodes: Of the export.
    """

    mean: float
    low: float
    high: float
    episodes: int

    def holds(self, mean: float) -> bool:
        """Return whether a mean return is within the interval."""
        return self.low <= mean <= self.high

    def verdict(self, mean: float) -> str:
        """Return a line that holds a mean return against the statement."""
        place = "within" if self.holds(mean) else "OUTSIDE"
        return (
            f"stated {self.mean} over {self.episodes} episodes, 95 % interval "
            f"[{self.low:.6g}, {self.high:.6g}]: this return is {place} it"
        )


def interval(evaluation: Evaluation) -> tuple[float, float]:
    """Return the ends of the 95 % interval of the mean over episodes.

    Args:
        evaluation: Of two episodes or more.

    Returns:
        The mean less and plus 1.96 standard errors.
    """
    reach = NORMAL_95 * evaluation.standard_error
    return evaluation.return_mean - reach, evaluation.return_mean + reach


def check_export(folder: Path, run: Path, *, best: bool = False) -> None:
    """Check what can be checked before the evaluation.

    Args:
        folder: Where an agent shall be written.
        run: The run's folder.
        best: Whether it is the run's best checkpoint that is meant.

    Raises:
        InputError: If the folder holds something, or the run is none or has no such checkpoint.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is no empty folder; give another --export.")
    if is_exported(run):
        raise InputError(f"{run} is an exported agent; copy the folder, or name a run's.")
    read_run(run, KIND, BEST if best else LAST)


def export_agent(
    run: Path, folder: Path, evaluation: Evaluation, *, best: bool = False, command: str
) -> None:
    """Write an agent with where it is from.

    Args:
        run: The run's folder.
        folder: Where to; a crash leaves it complete or not there.
        evaluation: Of that checkpoint.
        best: Whether it is of the run's best checkpoint instead of the last one.
        command: That does this.

    Raises:
        InputError: If the folder or the run cannot be used, or the evaluation has one episode.
    """
    check_export(folder, run, best=best)
    episodes = len(evaluation.returns)
    if episodes < 2:
        raise InputError("Got 1 evaluation episode, whose mean has no interval; give 2 or more.")
    name = BEST if best else LAST
    config, content = read_run(run, KIND, name)
    provenance = {
        "command": command,
        "commit": source.commit(),
        "versions": {"python": platform.python_version(), **source.versions(PACKAGES)},
        "env_id": config["env_id"],
        "seed": config["seed"],
        "total_steps": config["total_steps"],
        "checkpoint": name,
        "evaluation": _figures(evaluation),
        "summary": read_json(run / SUMMARY) if (run / SUMMARY).is_file() else None,
        # Folders and devices are the machine's, all else is needed to train it again.
        "config": {key: value for key, value in config.items() if key not in RUN_CONTROL},
    }
    agent = {"agent": content["agent"], "eval_episodes": episodes}
    place = folder.resolve()  # what a link leads to
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{folder} cannot be made ({error.strerror}); give another --export."
        ) from error
    with TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as partial:
        made = Path(partial) / place.name
        write_checkpoint(made / AGENT, KIND, agent)
        write_json(made / PROVENANCE, provenance)
        if place.exists():
            place.rmdir()
        made.rename(place)
    sync_folder(place.parent)


def read_statement(folder: Path) -> Statement | None:
    """Read what an exported agent is stated to reach.

    Args:
        folder: Of the agent, or any other path.

    Returns:
        The statement; `None` if the path is none of an exported agent.

    Raises:
        InputError: If the file with the statement is missing or damaged.
    """
    if not is_exported(folder):
        return None
    path = folder / PROVENANCE
    again = "restore it from a copy or export again"
    stored = read_json(path, wanted="a folder with all files of the export", again=again)
    try:
        figures: Mapping[str, Any] = stored["evaluation"]
        low, high = map(float, figures["interval"])
        statement = Statement(
            mean=float(figures["return_mean"]), low=low, high=high, episodes=figures["episodes"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} states no return with its interval; {again}.") from error
    return statement


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "episodes": len(evaluation.returns),
        "first_seed": FIRST_EVALUATION_SEED,
        "return_mean": evaluation.return_mean,
        "return_std": evaluation.return_std,
        "standard_error": evaluation.standard_error,
        "interval": interval(evaluation),
    }
