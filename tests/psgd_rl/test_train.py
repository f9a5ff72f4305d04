"""Whole runs: what they write, how they end, and that resuming changes no bit."""

import json
import os
import random
import signal
import threading
from dataclasses import replace
from importlib import import_module

import pytest
import torch

from psgd_optim.config import AdamWConfig
from psgd_optim.tools.checkpoint import read_checkpoint
from psgd_optim.tools.run_folder import LAST, RUN_CONTROL
from psgd_optim.types import InputError
from psgd_rl import PRESETS, evaluate_run, train
from psgd_rl.config import NetworkConfig
from psgd_rl.evaluate import KIND
from psgd_rl.update import Updater


@pytest.fixture
def config(tmp_path):
    return replace(PRESETS["smoke"], run_dir=tmp_path / "run", total_steps=512, eval_episodes=1)


@pytest.fixture
def stray_signals_are_ignored():
    """A timer may fire just before `train` listens, or just after it stopped."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: None) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def lines(config):
    text = (config.run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def last(config):
    content = read_checkpoint(config.run_dir / "checkpoint" / "last.pt", KIND)
    for name in RUN_CONTROL:
        content["config"].pop(name, None)
    return content


def assert_equal(one, two, path=""):
    """Compare nested values bit for bit, but for the time taken."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), path
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), path
        for key in one.keys() - {"seconds", "env_threads"}:
            assert_equal(one[key], two[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), path
        for i, (x, y) in enumerate(zip(one, two, strict=True)):
            assert_equal(x, y, f"{path}/{i}")
    else:
        assert one == two, path


def test_run_writes_figures_checkpoints_and_summary(config):
    result = train(config)
    assert result.status == "finished"
    summary = json.loads((config.run_dir / "summary.json").read_text(encoding="utf-8"))
    assert summary["return_mean"] == result.evaluation.return_mean
    assert summary["return_std"] == result.evaluation.return_std
    expected = {
        "status": "finished",
        "steps": 512,
        "total_steps": 512,
        "seed": 0,
        "episodes": 1,
        "optimizer": "psgd",
    }
    assert expected.items() <= summary.items()
    assert summary["ms_per_step"] == pytest.approx(1000 / summary["steps_per_second"])
    assert summary["seconds"] == result.seconds
    names = set().union(*lines(config))
    losses = ("value_loss", "policy_loss", "entropy", "approx_kl", "clipfrac", "explained_variance")
    assert {f"losses/{name}" for name in losses} <= names
    assert {"charts/SPS", "charts/learning_rate", "eval/return_mean"} <= names
    assert [line["step"] for line in lines(config)] == [128, 256, 384, 512, 512]
    assert (config.run_dir / "checkpoint" / "best.pt").is_file()
    assert list(config.run_dir.glob("events.out.tfevents.*"))


def test_numbered_actions_train_and_are_evaluated_to_the_same_number(tmp_path):
    config = replace(
        PRESETS["cartpole"], run_dir=tmp_path / "run", total_steps=2048, eval_episodes=3
    )
    result = train(config)
    assert evaluate_run(config.run_dir).returns.tolist() == result.evaluation.returns.tolist()
    assert result.evaluation.return_mean > 15  # a fixed action lasts about 9 steps


def test_finished_episodes_are_logged(config):
    config = replace(config, total_steps=4 * 1024, rollout_steps=512, eval_every=0)
    train(config)
    with_episodes = [line for line in lines(config) if "charts/episodic_return" in line]
    assert [line["charts/episodic_length"] for line in with_episodes] == [1000.0]


def test_evaluating_the_run_gives_its_number_again(config):
    result = train(config)
    assert evaluate_run(config.run_dir).return_mean == result.evaluation.return_mean


def test_best_checkpoint_is_that_of_the_best_evaluation(config):
    config = replace(config, total_steps=1024, eval_every=2)
    train(config)
    returns = [line["eval/return_mean"] for line in lines(config) if "eval/return_mean" in line]
    assert len(set(returns)) == len(returns) == 4
    assert evaluate_run(config.run_dir, best=True).return_mean == max(returns)
    assert evaluate_run(config.run_dir).return_mean == returns[-1]


def test_seed_decides_everything(config):
    runs = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run = replace(
            config, run_dir=config.run_dir / name, seed=seed, env_threads=1 + (name == "b")
        )
        train(run)
        runs.append(last(run))
    assert_equal(runs[0], runs[1])
    key = "layers.0.weight"
    assert not torch.equal(runs[0]["agent"]["actor"][key], runs[2]["agent"]["actor"][key])


@pytest.mark.parametrize("kind", ["psgd", "adamw"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("stray_signals_are_ignored")
def test_signal_at_any_moment_then_resume_changes_no_bit(config, kind, number):
    config = replace(config, total_steps=2048, rollout_steps=64, save_every=3)
    if kind == "adamw":
        config = replace(config, actor=AdamWConfig(), critic=AdamWConfig())
    whole = replace(config, run_dir=config.run_dir / "whole")
    parts = replace(config, run_dir=config.run_dir / "parts")
    seconds = train(whole).seconds
    statuses = []
    moments = random.Random(f"{kind} {number}")  # of a clock that is never quite the same
    while "finished" not in statuses:
        delay = moments.uniform(0.05, 0.6) * seconds / 2
        timer = threading.Timer(delay, os.kill, (os.getpid(), number))
        if len(statuses) < 2:
            timer.start()
        statuses.append(train(replace(parts, resume=bool(statuses))).status)
        timer.cancel()
    assert "interrupted" in statuses
    assert_equal(last(whole), last(parts))
    one, two = lines(whole), lines(parts)
    for line in one + two:
        line.pop("charts/SPS", None)
    assert one == two


def test_interrupted_run_says_so(config, monkeypatch):
    update = Updater.update

    def interrupted(self, rollout):
        os.kill(os.getpid(), signal.SIGINT)
        return update(self, rollout)

    monkeypatch.setattr(Updater, "update", interrupted)
    result = train(config)
    assert result.status == "interrupted"
    assert result.evaluation is None
    summary = json.loads((config.run_dir / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "interrupted"
    assert summary["return_mean"] is None
    assert summary["steps"] == result.steps == 128
    assert last(config)["iteration"] == 1


def test_resuming_a_finished_run_reports_it_again(config, monkeypatch):
    chosen = iter([1, 2])
    monkeypatch.setattr("psgd_rl.envs.make.fastest_threads", lambda *_: next(chosen))
    first = train(config)
    summary = (config.run_dir / "summary.json").read_text(encoding="utf-8")
    logged = lines(config)
    second = train(replace(config, resume=True))
    assert second.evaluation.return_mean == first.evaluation.return_mean
    assert (second.steps, second.seconds) == (first.steps, first.seconds)
    assert lines(config) == logged
    assert (config.run_dir / "summary.json").read_text(encoding="utf-8") == summary


@pytest.mark.parametrize("other", [{"seed": 7}, {"network": NetworkConfig(hidden=(8,))}])
def test_checkpoint_of_another_run_is_refused(config, other):
    theirs = replace(config, run_dir=config.run_dir.with_name("theirs"), **other)
    train(theirs)
    train(config)
    (theirs.run_dir / LAST).replace(config.run_dir / LAST)
    with pytest.raises(InputError, match="is a checkpoint of another run"):
        train(replace(config, resume=True))


def test_run_is_not_deleted_for_one_that_cannot_work(config):
    train(config)
    before = last(config)
    with pytest.raises(InputError, match="cannot be used here"):
        train(replace(config, overwrite=True, device="cuda:99"))
    assert_equal(last(config), before)


def test_what_cannot_work_leaves_no_folder(config):
    with pytest.raises(InputError, match="cannot be used here"):
        train(replace(config, device="cuda:99"))
    assert not config.run_dir.exists()


def test_loss_that_is_not_finite_names_the_step_and_keeps_the_checkpoint(config, monkeypatch):
    update, calls = Updater.update, []

    def spoilt(self, rollout):
        calls.append(1)
        if len(calls) == 4:
            rollout.rewards[3, 1] = float("nan")
        return update(self, rollout)

    monkeypatch.setattr(Updater, "update", spoilt)
    with pytest.raises(InputError, match=r"after step 512 gave losses/.* = nan.*last\.pt"):
        train(config)
    content = last(config)
    assert content["iteration"] == 2
    assert all(p.isfinite().all() for p in content["agent"]["actor"].values())


def test_crash_loses_only_the_rollouts_since_the_checkpoint(config, monkeypatch):
    whole = replace(config, run_dir=config.run_dir / "whole")
    train(whole)
    parts = replace(config, run_dir=config.run_dir / "parts")
    update, calls = Updater.update, []

    def crashes_once(self, rollout):
        calls.append(1)
        if len(calls) == 4:
            raise OSError("pulled the plug")
        return update(self, rollout)

    monkeypatch.setattr(Updater, "update", crashes_once)
    with pytest.raises(OSError, match="plug"):
        train(parts)
    assert [line["step"] for line in lines(parts)] == [128, 256, 384]
    train(replace(parts, resume=True))
    assert_equal(last(whole), last(parts))
    steps = [[line["step"] for line in lines(run)] for run in (whole, parts)]
    assert steps[0] == steps[1]


def test_final_evaluation_is_logged_once_though_the_run_died_before_it_was_saved(
    config, monkeypatch
):
    module = import_module("psgd_rl.train")  # the package has a function of that name
    write, dies = module.write_checkpoint, [True]

    def dies_once(path, *rest):
        if path.name == "best.pt" and dies:
            dies.clear()
            raise OSError("pulled the plug")
        write(path, *rest)

    monkeypatch.setattr(module, "write_checkpoint", dies_once)
    with pytest.raises(OSError, match="plug"):
        train(config)
    train(replace(config, resume=True))
    assert [line["step"] for line in lines(config)] == [128, 256, 384, 512, 512]


@pytest.mark.parametrize("fails", [False, True])
def test_torchs_threads_are_restored(config, fails, monkeypatch):
    config = replace(config, total_steps=128, eval_every=0)
    seen = []
    update = Updater.update

    def look(self, rollout):
        seen.append(torch.get_num_threads())
        if fails:
            raise InputError("no")
        return update(self, rollout)

    monkeypatch.setattr(Updater, "update", look)
    before = torch.get_num_threads()
    wanted = 2 if before == 1 else 1
    if fails:
        with pytest.raises(InputError, match="no"):
            train(replace(config, threads=wanted))
    else:
        train(replace(config, threads=wanted))
    assert set(seen) == {wanted}
    assert torch.get_num_threads() == before


def test_folder_with_a_run_is_refused_unless_told(config):
    train(config)
    with pytest.raises(InputError, match="--resume, --overwrite"):
        train(config)
    with pytest.raises(InputError, match="started with seed = 0, got 1"):
        train(replace(config, resume=True, seed=1))
    assert train(replace(config, overwrite=True)).status == "finished"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_trains_on_a_gpu(config):
    result = train(replace(config, device="cuda"))
    assert evaluate_run(config.run_dir).return_mean == result.evaluation.return_mean
