"""Runs in which something goes wrong: numbers that are not finite, and full disks."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from psgd_lm.data import load_data
from psgd_lm.objective import Objective
from psgd_lm.progress import Progress
from psgd_lm.schedules import Cosine
from psgd_lm.stepping import Stepper
from psgd_lm.train import DivergedError, train
from psgd_lm.trainee import make_batches
from psgd_optim.config import OPTIMIZERS
from psgd_optim.tools.run_folder import RunFolder
from tests.psgd_lm.run_files import (
    assert_same_run,
    checkpoint,
    die_after,
    metrics,
)


@pytest.mark.parametrize("name", ["psgd", "adamw"])
def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(tiny_config, name):
    optim = replace(OPTIMIZERS[name], lr=1e30)
    config = replace(
        tiny_config, optim=optim, schedule=Cosine(warmup=0), steps=40, log_every=1000, eval_every=15
    )
    words = r"gradient of step 5 is not finite, after leaving out 2, 3, 4; .* step 0, is"
    with pytest.raises(DivergedError, match=words) as error:
        train(config)
    assert "\n" not in str(error.value)
    assert json.loads((config.run_dir / "summary.json").read_text())["status"] == "diverged"
    kept = checkpoint(config)
    assert kept["progress"]["step"] == 0
    assert all(value.isfinite().all() for value in kept["model"].values())


def spoil(monkeypatch, bad, number=float("nan")):
    """Make the gradient of some steps, by their inputs' number in the order of the data, bad."""
    original = Objective.part

    def part(objective, inputs, targets, memory, *, twice):
        losses, penalty, left = original(objective, inputs, targets, memory, twice=twice)
        if not any(torch.equal(inputs, batch.inputs[: len(inputs)]) for batch in bad):
            return losses, penalty, left
        if number is not None:
            return losses * number, penalty, left
        losses.register_hook(lambda gradient: gradient * torch.nan)  # the loss is good
        return losses, penalty, left

    monkeypatch.setattr(Objective, "part", part)


def batches_of(config):
    data = load_data(config.data, config.model.context)
    return make_batches(config, data.train, is_recurrent=False)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), None])
@pytest.mark.parametrize("name", ["psgd", "adamw"])
def test_a_bad_batch_is_left_out_and_nothing_of_it_stays(tiny_config, monkeypatch, name, number):
    config = replace(tiny_config, optim=OPTIMIZERS[name])
    bad = batches_of(config).at(12)
    spoil(monkeypatch, [bad], number)
    assert train(config).summary["steps_left_out"] == [13]

    # The same run with a step that has no batch, and no roll-back.
    clean = replace(config, run_dir=config.run_dir.with_name("clean"), rollbacks=0)
    original = Progress.__init__
    monkeypatch.setattr(
        Progress, "__init__", lambda self, **fields: original(self, **{"skipped": [13], **fields})
    )
    train(clean)
    assert_same_run(config, clean)
    assert {"step": 13, "train/left_out": 1.0} in metrics(config)


def test_a_run_that_is_killed_after_going_back_ends_the_same(long_config, monkeypatch):
    spoil(monkeypatch, [batches_of(long_config).at(36), batches_of(long_config).at(70)])
    whole = replace(long_config, run_dir=long_config.run_dir.with_name("whole"))
    assert train(whole).summary["steps_left_out"] == [37, 71]
    for steps in (20, 45, 60):
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
            die_after(patch, steps)
            train(replace(long_config, resume=steps > 20))
    assert train(replace(long_config, resume=True)).summary["steps_left_out"] == [37, 71]
    assert_same_run(long_config, whole)


def test_bad_loss_in_the_middle_keeps_the_checkpoint_before_it(tiny_config, monkeypatch):
    spoil(monkeypatch, [batches_of(tiny_config).at(12)])
    config = replace(tiny_config, rollbacks=0)
    with pytest.raises(DivergedError, match=r"gradient of step 13 is not finite; .* of step 10"):
        train(config)
    assert checkpoint(config)["progress"]["step"] == 10


def test_parameters_that_are_not_finite_are_never_saved(tiny_config, monkeypatch):
    original = Stepper.take
    steps = []

    def spoil_step_7(stepper, batch):
        steps.append(1)
        taken = original(stepper, batch)
        if len(steps) == 7:
            next(stepper.objective.model.parameters()).data[0] = torch.inf
            os.kill(os.getpid(), signal.SIGTERM)
        return taken

    monkeypatch.setattr(Stepper, "take", spoil_step_7)
    config = replace(tiny_config, rollbacks=0)
    with pytest.raises(DivergedError, match=r"parameter of step 7 is not finite; .* of step 0"):
        train(config)
    assert checkpoint(config)["progress"]["step"] == 0


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_full_disk_leaves_the_checkpoint_and_the_way_on(long_config, monkeypatch, name):
    whole = replace(long_config, run_dir=long_config.run_dir.with_name("whole"))
    train(whole)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        die_after(patch, 52)
        train(long_config)
    folder = long_config.run_dir / "checkpoint"
    before = (folder / "last.pt").read_bytes()
    (folder / f"{name}.pt.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space") as error:
        train(replace(long_config, resume=True))
    assert error.value.filename == str(folder / f"{name}.pt")
    assert (folder / "last.pt").read_bytes() == before
    train(replace(long_config, resume=True))
    assert_same_run(long_config, whole)


def test_a_full_disk_is_told_by_the_log_too(tiny_config, monkeypatch):
    log = tiny_config.run_dir / "metrics.jsonl"
    tiny_config.run_dir.mkdir()
    original = RunFolder.log

    def full(folder, step, values):
        log.unlink(missing_ok=True)
        log.symlink_to("/dev/full")
        original(folder, step, values)

    monkeypatch.setattr(RunFolder, "log", full)
    with pytest.raises(OSError, match="No space") as error:
        train(tiny_config)
    assert error.value.filename == str(log)
