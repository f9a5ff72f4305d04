"""A folder that is written whole or not at all."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from psgd_optim.types import InputError

PARTIAL, OLD = ".partial", ".old"


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Give a folder to write to, which takes the place of another if nothing goes wrong.

    Args:
        out: The folder to replace or to make.

    Yields:
        An empty folder beside it.

    Raises:
        InputError: If there is no place for it.
    """
    partial, old = out.with_name(out.name + PARTIAL), out.with_name(out.name + OLD)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{out} cannot be made ({error.strerror}); give another --out.") from error
    try:
        yield partial
        if out.exists():
            out.rename(old)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        restore(out)


def restore(out: Path) -> None:
    """Tidy up after a folder has been replaced, or after a process that was killed in doing so.

    Args:
        out: The folder; if only its old content is left, that takes its place again.
    """
    old = out.with_name(out.name + OLD)
    if old.exists() and not out.exists():
        old.rename(out)
    shutil.rmtree(old, ignore_errors=True)
