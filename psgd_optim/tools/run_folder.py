"""A run's folder: its configuration, metrics, checkpoints and summary."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch.utils.tensorboard import SummaryWriter

from psgd_optim.tools.checkpoint import drop_copies_after, read_checkpoint, sync_folder
from psgd_optim.tools.choices import config_to_dict
from psgd_optim.types import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"
LAST, BEST = "checkpoint/last.pt", "checkpoint/best.pt"
RUN_CONTROL = (
    "run_dir",
    "resume",
    "overwrite",
    "device",
    "env_threads",
    "checkpoint_every",
    "keep",
)
"""Configuration fields that may differ between a run and its resumption."""


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=2, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def read_json(
    path: Path, *, wanted: str = "a folder that a training run wrote", again: str = "train again"
) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: The file.
        wanted: What a message asks for if the file is not there.
        again: What a message asks for if it is damaged.

    Returns:
        Its value.

    Raises:
        InputError: If the file is missing, is no JSON or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"There is no {path}; name {wanted}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not readable JSON ({error}); {again}.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}, not an object; {again}.")
    return value


def first_difference(
    stored: Mapping[str, Any], given: Mapping[str, Any], prefix: str = ""
) -> str | None:
    """Describe the first setting in which two configurations differ.

    Args:
        stored: A configuration as JSON values, as it was.
        given: The same, as it is now.
        prefix: Of the names.

    Returns:
        `name = old, got new`, or `None` when they agree.

    >>> first_difference({"optim": {"lr": 1}, "steps": 5}, {"optim": {"lr": 2}, "steps": 5})
    'optim.lr = 1, got 2'
    """
    for key in sorted(stored.keys() | given.keys(), key=lambda key: (key != "name", key)):
        old, new = stored.get(key), given.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found = first_difference(old, new, f"{prefix}{key}.")
            if found:
                return found
        elif old != new:
            return f"{prefix}{key} = {old}, got {new}"
    return None


def _essential(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide what a run computes."""
    return {key: value for key, value in settings.items() if key not in RUN_CONTROL}


def read_run(path: Path, kind: str, name: str = LAST) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a run's configuration and one of its checkpoints.

    Args:
        path: The run's folder.
        kind: Of the application.
        name: `LAST` or `BEST`.

    Returns:
        The configuration as JSON values, and the content of the checkpoint, whose `config` is
        the configuration that it was written under.

    Raises:
        InputError: If one of them is missing or damaged, is of another kind, or if the checkpoint
            is of another run.
    """
    config = read_json(path / CONFIG)
    if config.get("kind") != kind:
        raise InputError(f"{path} is of kind {config.get('kind')}, not {kind}; name such a run.")
    content = read_checkpoint(path / name, kind)
    written = {"kind": kind, **_essential(content["config"])}
    difference = first_difference(_essential(config), written)
    if difference:
        raise InputError(
            f"{path / name} is a checkpoint of another run: {CONFIG} says {difference} in the "
            "checkpoint; restore the run's own checkpoint."
        )
    return config, content


class RunFolder:
    """The folder of one run, open for writing; a context manager that flushes its logs.

    Metrics go to `metrics.jsonl` and to TensorBoard event files. Resuming drops the metrics
    after the checkpoint's step, so that the log is that of an uninterrupted run.

    Args:
        path: The folder.
        kind: What the folder is of; folders of another kind are neither resumed nor deleted.
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
        kind: str,
        config: "DataclassInstance",
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        settings = {"kind": kind, **config_to_dict(config)}
        self.path = path
        self._check(settings, resume=resume, overwrite=overwrite)
        if overwrite and path.exists():
            shutil.rmtree(path.resolve())  # what a link leads to, not the link
        try:
            path.resolve().mkdir(parents=True, exist_ok=True)
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
            self._check_kind(stored, settings)
            difference = first_difference(_essential(stored), _essential(settings))
            if difference:
                raise InputError(
                    f"{self.path} was started with {difference}; give the same settings or "
                    "another --run-dir."
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
            self._check_kind(read_json(self.path / CONFIG), settings)

    def _check_kind(self, stored: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        if stored.get("kind") != settings["kind"]:
            raise InputError(
                f"{self.path} is of kind {stored.get('kind')}, not {settings['kind']}; give "
                "another --run-dir."
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
        """Drop the summary and what is of later steps, before a run goes on from `step`."""
        self.close()
        (self.path / SUMMARY).unlink(missing_ok=True)
        drop_copies_after(self.last_checkpoint.parent, step)
        log = self.path / METRICS
        if log.exists():
            kept = [line for line, at in self._logged() if at <= step]
            partial = log.with_name(log.name + ".partial")
            partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            partial.replace(log)
        self._events = SummaryWriter(str(self.path), purge_step=step + 1)

    def last_logged_step(self) -> int:
        """Return the latest step in the log; -1 if it has none."""
        return max((step for _, step in self._logged()), default=-1)

    def _logged(self) -> list[tuple[str, int]]:
        """Return the whole lines of the log, each with its step."""
        log = self.path / METRICS
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        return [(line, json.loads(line)["step"]) for line in lines if line.endswith("}")]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record named numbers of one step.

        Args:
            step: Steps done so far.
            values: Names as `group/name`, plain numbers.

        Raises:
            OSError: If the file cannot be written; it names the file.
        """
        if self._events is None:
            self._events = SummaryWriter(str(self.path))
        path = self.path / METRICS
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            # The message of a full disk names no file.
            raise OSError(error.errno, error.strerror, str(path)) from error
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
