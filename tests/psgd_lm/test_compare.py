import json
import os
import signal
from dataclasses import replace

import pytest

from psgd_lm import compare as compare_module
from psgd_lm import train as train_module
from psgd_lm.compare import Grid, compare, members
from psgd_lm.presets import PRESETS, TUNED
from psgd_lm.stepping import Stepper
from psgd_optim.types import InputError


def test_members_are_the_product_of_the_grid():
    grid = Grid(optimizers=("psgd", "adamw"), lrs=(1e-3, 0.01), seeds=(0, 5))
    runs = members("smoke", PRESETS["smoke"], grid)
    assert len(runs) == 8
    run = runs["adamw-lr0.01-seed5"]
    assert (run.optim.name, run.optim.lr, run.seed) == ("adamw", 0.01, 5)
    assert replace(run, optim=PRESETS["smoke"].optim, seed=0) == PRESETS["smoke"]


def test_without_learning_rates_every_optimizer_has_its_own():
    runs = members("smoke", PRESETS["smoke"], Grid())
    assert {run.optim for run in runs.values()} == set(TUNED["smoke"].values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizers": ()}, "no optimizers; give --optimizers one or more"),
        ({"seeds": ()}, "no seeds; give --seeds one or more"),
        ({"optimizers": ("adam",)}, "no optimizer 'adam'; did you mean adamw"),
        ({"lrs": (1e-3, 0.001)}, "psgd-lr0.001-seed0 is asked for twice"),
        ({"lrs": (-1.0,)}, "lr = -1.0; give a number above 0"),
    ],
)
def test_impossible_grid_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        members("smoke", PRESETS["smoke"], Grid(**changes))


@pytest.mark.parametrize("changes", [{"seed": 3}, {"optim": TUNED["smoke"]["adamw"]}])
def test_flags_that_the_grid_replaces_are_refused(changes):
    with pytest.raises(InputError, match="give --optimizers, --lrs and --seeds"):
        members("smoke", replace(PRESETS["smoke"], **changes), Grid())


def runs_of(config, **grid):
    task = replace(config, optim=PRESETS["smoke"].optim)
    return members("smoke", task, Grid(**grid))


def test_comparison_writes_table_picture_and_figures(tiny_config, tmp_path):
    folder = tmp_path / "comparison"
    result = compare(runs_of(tiny_config, seeds=(0, 1)), folder)
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
    assert row.val_loss == pytest.approx(sum(losses) / 2)


def test_diverging_run_does_not_stop_the_comparison(tiny_config, tmp_path):
    runs = runs_of(tiny_config, optimizers=("adamw",), lrs=(1e30, 1e-2))
    result = compare(runs, tmp_path / "comparison")
    assert [(row.lr, row.finished, row.diverged) for row in result.rows] == [
        (1e-2, 1, 0),
        (1e30, 0, 1),
    ]


def test_resumed_comparison_keeps_finished_runs(tiny_config, tmp_path, monkeypatch):
    runs = runs_of(tiny_config)
    whole = compare(runs, tmp_path / "whole")
    original = Stepper.take
    steps = []

    def signal_in_step_30(stepper, batch):
        steps.append(1)
        if len(steps) == 30:  # the tenth of the second run
            os.kill(os.getpid(), signal.SIGINT)
        return original(stepper, batch)

    folder = tmp_path / "comparison"
    monkeypatch.setattr(Stepper, "take", signal_in_step_30)
    assert compare(runs, folder).status == "interrupted"
    result = compare(runs, folder, resume=True)
    assert len(steps) == 40
    assert [row.val_loss for row in result.rows] == [row.val_loss for row in whole.rows]


def test_run_killed_before_its_first_checkpoint_starts_again(tiny_config, tmp_path, monkeypatch):
    runs = runs_of(tiny_config, optimizers=("adamw",))
    folder = tmp_path / "comparison"

    def die(*arguments):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(train_module, "write_checkpoint", die)
        compare(runs, folder)
    assert compare(runs, folder, resume=True).status == "finished"


def test_resuming_with_other_settings_is_refused(tiny_config, tmp_path):
    folder = tmp_path / "comparison"
    runs = runs_of(tiny_config, optimizers=("adamw",))
    compare(runs, folder)
    with pytest.raises(InputError, match="was started with members"):
        compare(runs_of(tiny_config), folder, resume=True)
    longer = {name: replace(run, steps=30) for name, run in runs.items()}
    with pytest.raises(InputError, match="was started with steps = 20, got 30"):
        compare(longer, folder, resume=True)


def test_what_cannot_work_leaves_the_old_comparison(tiny_config, tmp_path, text_file):
    folder = tmp_path / "comparison"
    runs = runs_of(tiny_config, optimizers=("adamw",))
    compare(runs, folder)
    text_file.write_text("")
    with pytest.raises(InputError, match="is empty"):
        compare(runs, folder, overwrite=True)
    assert (folder / compare_module.TABLE).is_file()
