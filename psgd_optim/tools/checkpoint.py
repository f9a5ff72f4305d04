"""Checkpoint files: written whole or not at all, read without running any code in them."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from psgd_optim.types import InputError

FORMAT = 1


def write_checkpoint(path: Path, kind: str, content: dict[str, Any]) -> None:
    """Write a checkpoint so that a crash at any moment leaves the old file or the new one.

    Args:
        path: The file to create or replace.
        kind: The application that the file belongs to, checked again on reading.
        content: Tensors, numbers, strings, and dicts and lists of them.

    Raises:
        OSError: If the file cannot be written; it names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            torch.save({"format": FORMAT, "kind": kind, "content": content}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        # The message of a full disk names no file.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a power failure, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def keep_copy(path: Path, step: int, count: int) -> None:
    """Keep a checkpoint under the name of its step, and the newest of those.

    Args:
        path: The checkpoint, just written.
        step: That it was written after.
        count: How many to keep; 0 keeps none.
    """
    if not count:
        return
    copy = path.with_name(f"step-{step:09d}.pt")
    partial = copy.with_name(copy.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(path, partial)  # costs no space, and `path` is replaced, never written to
    except OSError:  # a file system without links
        shutil.copyfile(path, partial)
    partial.replace(copy)
    partial.unlink(missing_ok=True)  # it stays where both are links of one file
    for old in kept_copies(path.parent)[:-count]:
        old.unlink()


def kept_copies(folder: Path) -> list[Path]:
    """Return the checkpoints that `keep_copy` has left in a folder, oldest first."""
    return sorted(folder.glob("step-?????????.pt"))


def drop_copies_after(folder: Path, step: int) -> None:
    """Delete the kept checkpoints of later steps, and what a kill has left of unfinished ones."""
    for path in kept_copies(folder):
        if int(path.stem.removeprefix("step-")) > step:
            path.unlink()
    for path in folder.glob("step-?????????.pt.partial"):
        path.unlink()


def read_checkpoint(path: Path, kind: str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        path: The file.
        kind: The application that reads it.

    Returns:
        The `content` that was written.

    Raises:
        InputError: If the file is missing, damaged, or of another kind or format.
    """
    if not path.is_file():
        raise InputError(f"There is no checkpoint {path}; name a run folder that has one.")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load reports a damaged file as RuntimeError, EOFError, UnpicklingError or others.
        raise InputError(
            f"The checkpoint {path} is damaged or truncated ({type(error).__name__}); "
            "restore it from a copy or train again."
        ) from error
    found = data.get("kind") if isinstance(data, dict) else None
    if found != kind:
        raise InputError(
            f"{path} is a checkpoint of {found!r}, not of {kind!r}; name one of the latter."
        )
    if data["format"] != FORMAT:
        raise InputError(
            f"{path} has checkpoint format {data['format']}, this version reads {FORMAT}."
        )
    content: dict[str, Any] = data["content"]
    return content
