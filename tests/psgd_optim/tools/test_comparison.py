"""Runs that only write what a run has to, under the comparison that trains and reads them."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from psgd_optim.tools.checkpoint import write_checkpoint
from psgd_optim.tools.comparison import failures, read_member, train_members
from psgd_optim.tools.grid import Grid
from psgd_optim.tools.run_folder import RunFolder
from psgd_optim.tools.runtime import Interrupt
from psgd_optim.types import InputError


@dataclass(frozen=True, kw_only=True)
class Config:
    goal: float
    run_dir: Path = Path()


def train(config, folder, resume):
    """Write a run that reaches its goal; below zero it cannot, and 9 is interrupted."""
    with RunFolder(folder, "toy", config, resume=resume, overwrite=not resume) as out:
        write_checkpoint(out.last_checkpoint, "toy", {})
        if config.goal < 0:
            raise InputError(f"Got goal {config.goal}; give one of at least 0.")
        out.log(1, {"figure": config.goal})
        out.log(1, {"other": 1.0})
        out.write_summary({"status": "interrupted" if config.goal == 9 else "finished"})
    return config.goal != 9


def run(folder, goals, **changes):
    configs = {name: Config(goal=goal) for name, goal in goals.items()}
    grid = Grid(run_dir=folder, **changes)
    return train_members(configs, grid, "toy", train, Interrupt())


def read(folder, name):
    return read_member(folder, name, optimizer="toy", lr=0.1, figure="figure")


def test_runs_are_written_and_read_back(tmp_path):
    folder = tmp_path / "all"
    assert run(folder, {"a": 1.0, "b": 2.0})
    member = read(folder, "b")
    assert (member.status, member.failure) == ("finished", "")
    assert member.evaluations == [{"step": 1, "figure": 2.0}]
    assert failures([member]) == []


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_cannot_go_on_does_not_end_the_others(tmp_path, workers):
    folder = tmp_path / "all"
    assert run(folder, {"a": -1.0, "b": 2.0}, workers=workers)
    bad, good = read(folder, "a"), read(folder, "b")
    assert good.status == "finished"
    assert failures([bad, good]) == [
        f"a failed: Got goal -1.0; give one of at least 0. ({folder / 'logs' / 'a.txt'})"
    ]


def test_interrupted_run_ends_the_comparison_for_now(tmp_path):
    folder = tmp_path / "all"
    assert not run(folder, {"a": 9.0, "b": 2.0})
    assert not (folder / "b").exists()


def test_runs_can_be_added_but_not_left_out(tmp_path, monkeypatch):
    folder = tmp_path / "all"
    run(folder, {"a": 1.0})
    stamp = (folder / "a" / "summary.json").stat().st_mtime_ns
    assert run(folder, {"b": 2.0, "a": 1.0}, resume=True)
    assert (folder / "a" / "summary.json").stat().st_mtime_ns == stamp
    assert json.loads((folder / "config.json").read_text())["members"] == ["b", "a"]
    with pytest.raises(InputError, match="was started with the run b; name all"):
        run(folder, {"a": 1.0}, resume=True)
    with pytest.raises(InputError, match=r"goal = 1\.0, got 3\.0"):
        run(folder, {"a": 3.0, "b": 2.0}, resume=True)


def test_folder_is_taken_over_only_when_told(tmp_path):
    folder = tmp_path / "all"
    run(folder, {"a": 1.0})
    with pytest.raises(InputError, match="--resume, --overwrite"):
        run(folder, {"a": 1.0})
    with pytest.raises(InputError, match="give one of them"):
        run(folder, {"a": 1.0}, resume=True, overwrite=True)
    assert run(folder, {"a": 1.0}, overwrite=True)
