import re
import subprocess
from pathlib import Path

from psgd_optim.tools.source import DIRTY, commit, versions


def git(folder: Path, *args: str) -> str:
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    done = subprocess.run(["git", *who, *args], cwd=folder, check=True, capture_output=True)
    return done.stdout.decode().strip()


def test_commit_is_that_of_the_file_and_tells_changes(tmp_path):
    file = tmp_path / "a.py"
    assert commit(tmp_path / "a.py") is None
    git(tmp_path, "init")
    file.write_text("1\n", encoding="utf-8")
    assert commit(file) is None  # git is around it, but does not know it
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-m", "first")
    (tmp_path / "untracked").touch()
    assert commit(file) == git(tmp_path, "rev-parse", "HEAD")
    file.write_text("2\n", encoding="utf-8")
    assert commit(file) == git(tmp_path, "rev-parse", "HEAD") + DIRTY


def test_versions_are_those_installed():
    found = versions(["torch", "no-such-package"])
    assert re.match(r"\d+\.\d+", found["torch"])
    assert found["no-such-package"] is None
