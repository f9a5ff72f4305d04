import json
import os
import random
import signal
import threading
from dataclasses import replace

import pytest
import torch

from psgd_lm.batches import Windows
from psgd_lm.data import load_data
from psgd_lm.gpt import GPT
from psgd_lm.objective import Objective
from psgd_lm.presets import PRESETS
from psgd_lm.progress import Progress
from psgd_lm.schedules import Cosine
from psgd_lm.stepping import Stepper
from psgd_lm.train import DivergedError, make_batches, train
from psgd_optim.config import OPTIMIZERS
from psgd_optim.types import InputError
from tests.psgd_lm.run_files import assert_same_run, checkpoint, die_after, metrics


@pytest.fixture
def long_config(tiny_config):
    """Long enough to be interrupted, with dropout so that the generator's state matters."""
    return replace(
        tiny_config,
        model=replace(tiny_config.model, dropout=0.1),
        steps=100,
        log_every=7,
        eval_every=30,
    )


def test_summary_has_every_figure(tiny_config):
    result = train(tiny_config)
    assert result.status == "finished"
    summary = json.loads((tiny_config.run_dir / "summary.json").read_text())
    assert summary == result.summary
    assert summary["steps"] == summary["val_step"] == 20
    assert summary["optimizer"] == "psgd"
    assert summary["parameters"] == sum(
        p.numel() for p in checkpoint(tiny_config)["model"].values()
    )
    assert summary["steps_per_second"] == pytest.approx(1000 / summary["ms_per_step"])
    assert summary["tokens_per_second"] == pytest.approx(summary["steps_per_second"] * 4 * 16)
    assert summary["seconds"] * 1000 > 20 * summary["ms_per_step"]
    assert summary["corpus"]["source"] == tiny_config.data.path
    assert len(summary["corpus"]["sha256"]) == 64


@pytest.mark.parametrize("name", ["psgd", "adamw"])
def test_parameters_move_in_the_first_step_and_the_loss_falls(tiny_config, name):
    config = replace(tiny_config, optim=replace(OPTIMIZERS[name], lr=1e-2), eval_every=1)
    train(config)
    first, last = metrics(config)[0], metrics(config)[-1]
    assert last["validation/loss"] < first["validation/loss"] - 0.3
    once = replace(
        config, steps=1, schedule=Cosine(warmup=0), run_dir=config.run_dir.with_name("once")
    )
    train(once)
    torch.manual_seed(config.seed)
    fresh = GPT(config.model, vocab_size=28).state_dict()
    for key, value in checkpoint(once)["model"].items():
        assert not torch.equal(value, fresh[key]), key


def test_every_step_has_its_own_batch_of_the_training_part(tiny_config, monkeypatch):
    seen = []
    original = Windows.at

    def spy(windows, step):
        seen.append((len(windows.tokens), windows.seed, step))
        return original(windows, step)

    monkeypatch.setattr(Windows, "at", spy)
    train(replace(tiny_config, seed=4))
    assert seen == [(2376, 4, step) for step in range(20)]  # 90 % of 2640


def test_same_seed_gives_the_same_run_and_another_does_not(tiny_config):
    other = replace(tiny_config, run_dir=tiny_config.run_dir.with_name("other"))
    third = replace(tiny_config, run_dir=tiny_config.run_dir.with_name("third"), seed=1)
    for config in (tiny_config, other, third):
        train(config)
    assert_same_run(tiny_config, other)
    assert metrics(tiny_config) != metrics(third)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["psgd", "adamw"])
def test_interrupted_run_ends_bit_for_bit_like_an_uninterrupted_one(long_config, name, number):
    config = replace(long_config, optim=OPTIMIZERS[name])
    whole = replace(config, run_dir=config.run_dir.with_name("whole"))
    seconds = train(whole).summary["seconds"]
    # A signal that comes when training is over must not end the tests.
    previous = signal.signal(number, lambda *_: None)
    chance = random.Random(f"{name} {number}")
    statuses = []
    try:
        while "finished" not in statuses:
            delay = chance.uniform(0.1, 0.5) * seconds
            timer = threading.Timer(delay, os.kill, (os.getpid(), number))
            timer.start()
            statuses.append(train(replace(config, resume=bool(statuses))).status)
            timer.cancel()
            timer.join()
    finally:
        signal.signal(number, previous)
    assert "interrupted" in statuses
    assert_same_run(config, whole)


def test_interruption_is_recorded(long_config, monkeypatch):
    original = Stepper.take
    steps = []

    def signal_in_step_41(stepper, batch):
        steps.append(1)
        if len(steps) == 41:
            os.kill(os.getpid(), signal.SIGINT)
        return original(stepper, batch)

    monkeypatch.setattr(Stepper, "take", signal_in_step_41)
    result = train(long_config)
    assert result.status == "interrupted"
    assert (result.summary["steps"], result.summary["val_step"]) == (41, 30)
    assert train(replace(long_config, resume=True)).summary["steps"] == 100


def test_killed_run_goes_on_from_its_last_checkpoint(long_config, monkeypatch):
    whole = replace(long_config, run_dir=long_config.run_dir.with_name("whole"))
    train(whole)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        die_after(patch, 52)
        train(long_config)
    assert checkpoint(long_config)["progress"]["step"] == 30
    train(replace(long_config, resume=True))
    assert_same_run(long_config, whole)


def test_finished_run_is_not_run_again(tiny_config, monkeypatch):
    first = train(tiny_config)
    monkeypatch.setattr(Stepper, "take", None)
    again = train(replace(tiny_config, resume=True))
    assert again.summary == first.summary


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
        is_bad = any(torch.equal(inputs, batch.inputs[: len(inputs)]) for batch in bad)
        return losses * number if is_bad else losses, penalty, left

    monkeypatch.setattr(Objective, "part", part)


def batches_of(config):
    data = load_data(config.data, config.model.context)
    return make_batches(config, data.train, is_recurrent=False)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resume": True}, "There is no .*name a folder that a training run wrote"),
        ({"device": "teapot"}, "device 'teapot' cannot be used"),
        (
            {"data": replace(PRESETS["smoke"].data, path="none.txt")},
            "Cannot read the text none.txt",
        ),
        ({"model": replace(PRESETS["smoke"].model, context=264)}, "a window takes 265"),
    ],
)
def test_what_cannot_work_leaves_no_folder(tiny_config, changes, message):
    config = replace(tiny_config, **changes)
    with pytest.raises(InputError, match=message):
        train(config)
    assert not config.run_dir.exists()


def test_run_is_not_deleted_for_one_that_cannot_work(tiny_config, text_file):
    train(tiny_config)
    text_file.write_text("")
    with pytest.raises(InputError, match="is empty"):
        train(replace(tiny_config, overwrite=True))
    assert checkpoint(tiny_config)["progress"]["step"] == 20


def test_folder_with_a_run_needs_a_decision(tiny_config):
    train(tiny_config)
    with pytest.raises(InputError, match="give --resume, --overwrite or another --run-dir"):
        train(tiny_config)
    with pytest.raises(InputError, match="was started with steps = 20, got 30"):
        train(replace(tiny_config, steps=30, resume=True))
    assert train(replace(tiny_config, overwrite=True)).status == "finished"


def test_truncated_checkpoint_is_not_resumed(tiny_config):
    train(tiny_config)
    path = tiny_config.run_dir / "checkpoint" / "last.pt"
    path.write_bytes(path.read_bytes()[:500])
    before = metrics(tiny_config)
    with pytest.raises(InputError, match="damaged or truncated"):
        train(replace(tiny_config, resume=True))
    assert metrics(tiny_config) == before
