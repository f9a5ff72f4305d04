import json
import os
import signal
from dataclasses import replace

import pytest

from psgd_optim.types import InputError
from psgd_rl import compare as compare_module
from psgd_rl.compare import compare
from psgd_rl.entries import RLGrid, members
from psgd_rl.presets import PRESETS
from psgd_rl.update import Updater

pytestmark = pytest.mark.usefixtures("short_episodes")


@pytest.fixture
def laid_out(tmp_path):
    task = replace(PRESETS["smoke"], total_steps=384, eval_every=2, eval_episodes=1)

    def lay_out(**changes):
        grid = RLGrid(run_dir=tmp_path / "all", **{"seeds": (0, 1), **changes})
        return members("smoke", task, grid), grid

    return lay_out


def test_comparison_writes_table_pictures_and_figures(laid_out):
    runs, grid = laid_out()
    result = compare(runs, grid)
    folder = grid.run_dir
    assert (folder / "comparison.md").read_text() == result.table + "\n"
    assert (folder / "curves.png").stat().st_size > 10_000
    assert (folder / "efficiency.png").stat().st_size > 10_000
    figures = json.loads((folder / "comparison.json").read_text())
    for name, summary in figures["members"].items():
        assert json.loads((folder / name / "summary.json").read_text()) == summary
    psgd = next(row for row in figures["rows"] if row["optimizer"] == "psgd")
    finals = [figures["members"][f"psgd-lr0.0015-seed{i}"]["return_mean"] for i in (0, 1)]
    assert psgd["final_returns"] == finals
    assert psgd["curve"]["steps"] == [256, 384]
    assert [curve[-1] for curve in psgd["curve"]["returns"]] == finals
    seconds = psgd["curve"]["seconds"]
    assert 0 < seconds[0] < seconds[1] <= psgd["seconds"]
    assert 0 <= psgd["improvement_probability"][0] <= 1


def test_run_that_cannot_go_on_is_reported_and_retried(laid_out, monkeypatch):
    update = Updater.update

    def spoilt(self, rollout):
        figures = update(self, rollout)
        is_bad = self._actor_optimizer.param_groups[0]["lr"] > 0.5
        return {**figures, "losses/entropy": float("nan")} if is_bad else figures

    monkeypatch.setattr(Updater, "update", spoilt)
    runs, grid = laid_out(optimizers=("adamw:1.0,0.01",), seeds=(0,))
    result = compare(runs, grid)
    assert [(row.lr, len(row.runs), row.failed) for row in result.rows] == [
        (0.01, 1, 0),
        (1.0, 0, 1),
    ]
    assert "adamw-lr1-seed0 failed: The update after step 128 gave losses/entropy" in result.table
    monkeypatch.setattr(Updater, "update", update)
    assert compare(runs, replace(grid, resume=True)).rows[0].failed == 0
    assert "failed" not in (grid.run_dir / "comparison.md").read_text()


def test_interrupted_comparison_goes_on_and_can_be_extended(laid_out, monkeypatch):
    update, calls = Updater.update, []

    def signalled(self, rollout):
        calls.append(1)
        if len(calls) == 4:  # the first of the second run
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, rollout)

    monkeypatch.setattr(Updater, "update", signalled)
    runs, grid = laid_out(optimizers=("adamw",))
    assert compare(runs, grid).status == "interrupted"
    assert not (grid.run_dir / "comparison.md").exists()
    result = compare(runs, replace(grid, resume=True))
    assert (result.status, len(calls)) == ("finished", 6)
    more, grid = laid_out(resume=True)
    assert {row.optimizer for row in compare(more, grid).rows} == {"adamw", "psgd"}
    assert len(calls) == 12
    monkeypatch.setattr(compare_module, "train", None)
    compare(more, grid)


def test_what_cannot_work_leaves_no_folder(laid_out):
    runs, grid = laid_out()
    bad = {n: replace(r, config=replace(r.config, device="cuda:99")) for n, r in runs.items()}
    with pytest.raises(InputError, match="cannot be used here"):
        compare(bad, grid)
    assert not grid.run_dir.exists()
