import json
import os
import random
import signal
import sys
import threading
from dataclasses import replace
from functools import partial

import pytest
import torch
from tqdm import tqdm

from psgd_lm.averaging import AverageConfig
from psgd_lm.batches import Windows
from psgd_lm.data import DataConfig
from psgd_lm.evaluate import evaluate
from psgd_lm.gpt import GPT
from psgd_lm.presets import PRESETS
from psgd_lm.recurrent import LSTMConfig
from psgd_lm.saved_run import load_run
from psgd_lm.schedules import Cosine
from psgd_lm.stepping import Stepper
from psgd_lm.train import train
from psgd_optim.config import OPTIMIZERS
from psgd_optim.types import InputError
from tests.psgd_lm.run_files import (
    assert_same_run,
    assert_same_state,
    checkpoint,
    die_after,
    metrics,
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


def test_a_run_that_never_steps_is_no_run(tiny_config):
    config = replace(tiny_config, optim=replace(tiny_config.optim, lr=1e-30))
    with pytest.raises(InputError, match=r"No parameter has changed in the first 10 steps .*1e-30"):
        train(config)


def test_the_log_tells_speed_and_where_the_time_goes(tiny_config):
    summary = train(tiny_config).summary
    lines = (tiny_config.run_dir / "metrics.jsonl").read_text().splitlines()
    logged = [r for r in map(json.loads, lines) if "train/loss" in r]
    assert [r["step"] for r in logged] == [5, 10, 15, 20]
    for name in ("time/tokens_per_second", "time/mfu", "time/forward", "time/backward"):
        assert all(r[name] > 0 for r in logged), name
    assert all(r["optim/skipped"] == 0 for r in logged)
    assert all(r["train/gradient_norm"] > 0 for r in logged)
    assert summary["tokens"] == 20 * 4 * 16
    assert summary["seconds_per_step"].keys() == {"forward", "backward", "optimizer_fit"}
    assert "measured" in summary["peak"]["source"]


def test_the_bar_can_be_drawn(tiny_config, monkeypatch, capsys):
    monkeypatch.setattr("psgd_lm.train.tqdm", partial(tqdm, file=sys.stderr, mininterval=0))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    train(tiny_config)
    assert "tok_s=" in capsys.readouterr().err


@pytest.fixture
def parts(tmp_path, text_file):
    folder = tmp_path / "parts"
    folder.mkdir()
    text = text_file.read_text()
    for name, piece in (("train", text), ("valid", text[:500]), ("test", text[300:700])):
        (folder / f"{name}.txt").write_text(piece)
    return DataConfig(path=str(folder))


def test_the_model_is_chosen_on_validation_and_reported_on_test(tiny_config, parts):
    # A learning rate that grows: the best evaluation is not the last one.
    config = replace(
        tiny_config,
        data=parts,
        optim=OPTIMIZERS["sgd"],
        steps=24,
        schedule=Cosine(warmup=23),
        eval_every=4,
    )
    config = replace(config, optim=replace(config.optim, lr=20.0))
    summary = train(config).summary
    assert 0 < summary["best_step"] < 24
    assert summary["test_step"] == summary["best_step"]
    best = load_run(config.run_dir, best=True, device="cpu")
    data = best.load_data()
    expected = evaluate(best.model, data.test, data.tokenizer.byte_lengths())
    assert summary["test_loss"] == expected.loss
    assert summary["test_loss"] != summary["best_val_loss"]


def test_a_text_without_a_test_part_has_no_test_figures(tiny_config):
    assert not [name for name in train(tiny_config).summary if name.startswith("test")]


def test_an_average_of_weights_is_what_is_evaluated_and_read_back(tiny_config):
    average = AverageConfig(start="fraction", fraction=0.5)
    config = replace(tiny_config, average=average)
    summary = train(config).summary
    plain = train(replace(tiny_config, run_dir=tiny_config.run_dir.with_name("plain"))).summary
    assert summary["val_loss"] != plain["val_loss"]
    run = load_run(config.run_dir, device="cpu")
    data = run.load_data()
    found = evaluate(run.model, data.validation, data.tokenizer.byte_lengths())
    assert found.loss == summary["val_loss"]
    other = config.run_dir.with_name("plain")
    # Training itself goes on from the weights.
    assert_same_state(
        checkpoint(config)["model"], checkpoint(replace(config, run_dir=other))["model"]
    )


def test_evaluations_can_come_after_every_epoch(tiny_config):
    # 2376 tokens in 2 streams of 1187; 75 steps of 16, the last of 3.
    model = LSTMConfig(layers=1, embedding=8, hidden=8, context=16)
    config = replace(
        tiny_config, model=model, batch_size=2, steps=0, epochs=2, eval_every=0, log_every=50
    )
    summary = train(config).summary
    assert summary["steps"] == 150
    assert [step for step, _ in checkpoint(config)["progress"]["history"]] == [0, 75, 150]
    assert summary["tokens"] == 2 * 2 * 1187


@pytest.mark.slow
# torch's own, while it compiles.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["psgd", "newton"])
def test_a_compiled_model_trains_like_the_model(tiny_config, name):
    optim = OPTIMIZERS[name]
    config = replace(tiny_config, optim=optim, steps=6, eval_every=3)
    config = replace(config, grad_clip=0.0 if name == "newton" else 1.0)
    compiled = replace(config, compile=True, run_dir=config.run_dir.with_name("compiled"))
    found = [train(each).summary["val_loss"] for each in (config, compiled)]
    assert found[0] == pytest.approx(found[1], rel=1e-4)  # six steps of float32
