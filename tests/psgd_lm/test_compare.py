import json
import os
import re
import signal
from dataclasses import replace

import pytest

from psgd_lm import compare as compare_module
from psgd_lm import run_state
from psgd_lm.compare import compare
from psgd_lm.entries import LMGrid, members
from psgd_lm.gpt import GPTConfig
from psgd_lm.presets import PRESETS
from psgd_lm.stepping import Stepper
from psgd_optim.types import InputError


def laid_out(config, folder, **changes):
    """Return the runs of a comparison on a tiny text, and its grid."""
    task = replace(config, optim=PRESETS["smoke"].optim)
    grid = LMGrid(run_dir=folder, **changes)
    return members("smoke", task, grid), grid


def test_comparison_writes_table_picture_and_figures(tiny_config, tmp_path):
    folder = tmp_path / "comparison"
    result = compare(*laid_out(tiny_config, folder, seeds=(0, 1)))
    assert result.status == "finished"
    assert {row.optimizer: row.finished for row in result.rows} == {"psgd": 2, "adamw": 2}
    assert (folder / "comparison.md").read_text() == result.table + "\n"
    assert (folder / "curves.png").stat().st_size > 10_000
    figures = json.loads((folder / "comparison.json").read_text())
    assert len(figures["members"]) == 4
    for name, summary in figures["members"].items():
        assert json.loads((folder / name / "summary.json").read_text()) == summary
    losses = [s["val_loss"] for s in figures["members"].values() if s["optimizer"] == "adamw"]
    row = next(row for row in result.rows if row.optimizer == "adamw")
    assert row.val_loss.value == pytest.approx(sum(losses) / 2)


def test_diverging_run_does_not_stop_the_comparison(tiny_config, tmp_path):
    result = compare(
        *laid_out(tiny_config, tmp_path / "all", optimizers=("adamw",), lrs=(1e30, 1e-2))
    )
    assert [(row.lr, row.finished, row.diverged) for row in result.rows] == [
        (1e-2, 1, 0),
        (1e30, 0, 1),
    ]


def test_resumed_comparison_keeps_finished_runs(tiny_config, tmp_path, monkeypatch):
    whole = compare(*laid_out(tiny_config, tmp_path / "whole"))
    original = Stepper.take
    steps = []

    def signal_in_step_30(stepper, batch):
        steps.append(1)
        if len(steps) == 30:  # the tenth of the second run
            os.kill(os.getpid(), signal.SIGINT)
        return original(stepper, batch)

    folder = tmp_path / "comparison"
    monkeypatch.setattr(Stepper, "take", signal_in_step_30)
    assert compare(*laid_out(tiny_config, folder)).status == "interrupted"
    result = compare(*laid_out(tiny_config, folder, resume=True))
    assert len(steps) == 40
    assert [row.val_loss for row in result.rows] == [row.val_loss for row in whole.rows]


def test_run_killed_before_its_first_checkpoint_starts_again(tiny_config, tmp_path, monkeypatch):
    runs, grid = laid_out(tiny_config, tmp_path / "comparison", optimizers=("adamw",))

    def die(*arguments):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(run_state, "write_checkpoint", die)
        compare(runs, grid)
    assert compare(runs, replace(grid, resume=True)).status == "finished"


def test_resuming_with_other_settings_is_refused(tiny_config, tmp_path):
    folder = tmp_path / "comparison"
    runs, grid = laid_out(tiny_config, folder, optimizers=("adamw",))
    compare(runs, grid)
    with pytest.raises(InputError, match="was started with the run adamw-lr"):
        compare(*laid_out(tiny_config, folder, optimizers=("psgd",), resume=True))
    longer = {
        name: replace(run, config=replace(run.config, steps=30)) for name, run in runs.items()
    }
    with pytest.raises(InputError, match="was started with steps = 20, got 30"):
        compare(longer, replace(grid, resume=True))


def test_finished_comparison_is_extended_by_an_optimizer(tiny_config, tmp_path):
    folder = tmp_path / "comparison"
    first = compare(*laid_out(tiny_config, folder, optimizers=("adamw",)))
    both = compare(*laid_out(tiny_config, folder, resume=True))
    assert {row.optimizer for row in both.rows} == {"psgd", "adamw"}
    assert first.rows[0] in both.rows


def test_what_cannot_work_leaves_the_old_comparison(tiny_config, tmp_path, text_file):
    folder = tmp_path / "comparison"
    runs, grid = laid_out(tiny_config, folder, optimizers=("adamw",))
    compare(runs, grid)
    text_file.write_text("")
    with pytest.raises(InputError, match="is empty"):
        compare(runs, replace(grid, overwrite=True))
    assert (folder / compare_module.TABLE).is_file()


def test_ended_runs_are_not_trained_again(tiny_config, tmp_path, monkeypatch):
    folder = tmp_path / "comparison"
    first = compare(*laid_out(tiny_config, folder, optimizers=("adamw",), lrs=(1e30, 1e-2)))
    monkeypatch.setattr(compare_module, "train", None)
    again = laid_out(tiny_config, folder, optimizers=("adamw",), lrs=(1e30, 1e-2), resume=True)
    assert compare(*again) == first


def test_shorter_run_is_held_against_the_baseline(tiny_config, tmp_path):
    folder = tmp_path / "comparison"
    # Hardly any learning rate: the target is just below the loss of the untrained model.
    result = compare(*laid_out(tiny_config, folder, optimizers=("psgd@0.5", "adamw:1e-9")))
    figures = json.loads((folder / "comparison.json").read_text())
    short = next(row for row in figures["rows"] if row["optimizer"] == "psgd@0.5")
    assert short["steps"] == 10
    assert short["reached"]["steps"] == 10
    assert short["reached"]["tokens"] == 10 * 4 * 16
    assert "10 (50 %)" in result.table
    assert figures["target"]["about"] == "the final loss of adamw, lr 1e-09"


@pytest.mark.slow
def test_crashed_worker_is_reported_and_the_others_go_on(tiny_config, tmp_path):
    alone = compare(*laid_out(tiny_config, tmp_path / "alone", optimizers=("psgd",)))
    folder = tmp_path / "comparison"
    runs, grid = laid_out(tiny_config, folder, workers=2)
    name = "adamw-lr0.01-seed0"
    too_wide = replace(runs[name].config, model=GPTConfig(width=2**20, heads=2, context=16))
    runs[name] = replace(runs[name], config=too_wide)
    result = compare(runs, grid)
    psgd, adamw = result.rows
    assert (psgd.finished, adamw.finished, adamw.failed) == (1, 0, 1)
    assert psgd.val_loss == alone.rows[0].val_loss
    assert re.search(f"{name} failed: .*", result.table)
    assert len(result.failures) == 1
    assert "2 runs at a time shared the machine" in result.table
    assert (folder / "logs" / "psgd-lr0.01-seed0.txt").is_file()
