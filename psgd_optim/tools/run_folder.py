"""A run's folder: its configuration, metrics, checkpoints and summary."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch.utils.tensorboard import SummaryWriter

from psgd_optim.types import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"
LAST, BEST = "checkpoint/last.pt", "checkpoint/best.pt"
RUN_CONTROL = ("run_dir", "resume", "overwrite", "device", "env_threads")
"""Configuration fields that may differ between a run and its resumption."""


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: Path) -> Any:  # noqa: ANN401 -- JSON is of any shape
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        Its value.

    Raises:
        InputError: If the file is missing or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"There is no {path}; name a folder that a training run wrote.") from error
    except ValueError as error:
        raise InputError(f"{path} is not readable JSON ({error}); train again.") from error


def config_to_dict(config: "DataclassInstance") -> dict[str, Any]:
    """Return a configuration as JSON values; a nested one with a `name` keeps it as a key.

    Args:
        config: A dataclass, possibly with dataclasses in its fields.

    Returns:
        The nested dict.
    """
    result = json.loads(json.dumps(asdict(config), default=str))
    for key, value in vars(config).items():
        name = getattr(type(value), "name", None)
        if isinstance(name, str):
            result[key] = {"name": name, **result[key]}
    return dict(result)


class RunFolder:
    """The folder of one run, open for writing; a context manager that flushes its logs.

    Metrics go to `metrics.jsonl` and to TensorBoard event files. Resuming drops the metrics
    after the checkpoint's step, so that the log is that of an uninterrupted run.

    Args:
        path: The folder.
        config: The run's configuration, with the fields named in `RUN_CONTROL`.
        resume: Continue the run that is in the folder.
        overwrite: Delete the run that is in the folder first.

    Raises:
        InputError: If the folder has a run and neither flag is given, has files of something
            else, cannot be made, has nothing to resume, or has a run of another configuration.
    """

    def __init__(
        self,
        path: Path,
        config: "DataclassInstance",
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        settings = config_to_dict(config)
        self.path = path
        self._check(settings, resume=resume, overwrite=overwrite)
        if overwrite and path.exists():
            shutil.rmtree(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(
                f"{path} cannot be made ({error.strerror}); give another --run-dir."
            ) from error
        if not resume:
            write_json(path / CONFIG, settings)
        self._events: SummaryWriter | None = None

    def _check(self, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        if resume and overwrite:
            raise InputError("Got --resume and --overwrite; give one of them.")
        if resume:
            stored = read_json(self.path / CONFIG)
            for key in sorted((stored.keys() | settings.keys()) - set(RUN_CONTROL)):
                if stored.get(key) != settings.get(key):
                    raise InputError(
                        f"{self.path} was started with {key} = {stored.get(key)}, got "
                        f"{settings.get(key)}; give the same settings or another --run-dir."
                    )
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            is_run = (self.path / CONFIG).is_file()
            if not is_run:
                raise InputError(
                    f"{self.path} exists and is no run folder; give another --run-dir."
                )
            if not overwrite:
                raise InputError(
                    f"{self.path} has a run; give --resume, --overwrite or another --run-dir."
                )

    @property
    def last_checkpoint(self) -> Path:
        """The newest checkpoint, from which a run resumes."""
        return self.path / LAST

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint with the best evaluation so far."""
        return self.path / BEST

    def rewind(self, step: int) -> None:
        """Drop the metrics of later steps, before a run goes on from `step`."""
        log = self.path / METRICS
        if log.exists():
            lines = log.read_text(encoding="utf-8").splitlines()
            kept = [
                line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step
            ]
            partial = log.with_name(log.name + ".partial")
            partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            partial.replace(log)
        self._events = SummaryWriter(str(self.path), purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record named numbers of one step.

        Args:
            step: Steps done so far.
            values: Names as `group/name`, plain numbers.
        """
        if self._events is None:
            self._events = SummaryWriter(str(self.path))
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def write_summary(self, values: Mapping[str, Any]) -> None:
        """Write the run's final figures."""
        write_json(self.path / SUMMARY, dict(values))

    def close(self) -> None:
        """Flush and close the event file."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
