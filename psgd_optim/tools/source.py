"""Which code ran: the commit of this checkout and the versions of packages."""

import shutil
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DIRTY = "+dirty"
"""Follows a commit from which tracked files differ."""


def commit(file: Path = Path(__file__)) -> str | None:
    """Return the full name of the commit that a file is of, marked if tracked files differ.

    Args:
        file: By default this one.

    Returns:
        `None` where git does not know the file: in an installation there may be a checkout of
        something else around it.
    """
    if not _git(file.parent, "ls-files", "--", file.name):
        return None
    changes = _git(file.parent, "status", "--porcelain", "--untracked-files=no")
    return _git(file.parent, "rev-parse", "HEAD") + (DIRTY if changes else "")


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the installed version of each package, `None` where there is none."""
    return {name: _version(name) for name in packages}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str:
    """Return what a command prints; nothing if it fails or there is no git."""
    git = shutil.which("git")
    if git is None:
        return ""
    done = subprocess.run(
        [git, *arguments], capture_output=True, text=True, check=False, cwd=folder
    )
    return done.stdout.strip() if done.returncode == 0 else ""
