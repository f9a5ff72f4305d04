"""A run of 2N steps is one of N steps, a kill, and N steps more: bit for bit."""

import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from psgd_lm.averaging import AverageConfig
from psgd_lm.recurrent import GRUConfig, LSTMConfig
from psgd_lm.schedules import Plateau
from psgd_lm.train import train
from psgd_optim.config import OPTIMIZERS, AdamWConfig, PSGDConfig, SGDConfig, TouchedRowsForm
from psgd_optim.tools.run_folder import RunFolder
from psgd_optim.types import InputError
from tests.psgd_lm.run_files import assert_same_run, checkpoint, die_after, metrics

ROOT = Path(__file__).parents[2]
AWD = {
    "layers": 2,
    "embedding": 12,
    "hidden": 14,
    "context": 10,
    "embedding_dropout": 0.1,
    "input_dropout": 0.2,
    "hidden_dropout": 0.2,
    "output_dropout": 0.2,
    "weight_dropout": 0.3,
    "activation_penalty": 2.0,
    "change_penalty": 1.0,
}
KINDS = {
    "gpt-psgd": {},
    "gpt-psgd-parts": {"micro_batch": 3, "precision": "bfloat16"},
    "gpt-fp16-scaler": {"optim": AdamWConfig(lr=1e-2), "precision": "float16"},
    "gpt-psgd-fp16-scaler": {"precision": "float16"},
    "gpt-routed": {
        "optim": OPTIMIZERS["muon"],
        "embedding": AdamWConfig(),
        "vector": AdamWConfig(),
    },
    "lstm-psgd-newton": {
        "model": LSTMConfig(**AWD),
        "optim": OPTIMIZERS["newton"],
        "grad_clip": 0.0,
        "variable_length": True,
        "micro_batch": 2,
    },
    "gru-sgd-plateau-averaged": {
        "model": GRUConfig(**AWD),
        "optim": SGDConfig(lr=5.0),
        "schedule": Plateau(warmup=0, patience=0),
        "average": AverageConfig(start="fraction", fraction=0.1),
        "variable_length": True,
    },
    "lstm-untied-sparse": {
        "model": LSTMConfig(**{**AWD, "tied": False, "sparse_embedding": True}),
        "embedding": PSGDConfig(form=TouchedRowsForm()),
        "variable_length": True,
    },
}


@pytest.fixture
def config(tiny_config):
    return replace(
        tiny_config,
        model=replace(tiny_config.model, dropout=0.1),
        steps=60,
        log_every=7,
        eval_every=25,
        checkpoint_every=4,
        keep=2,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_at_random_steps_ends_like_one_that_was_not(config, kind, monkeypatch):
    config = replace(config, **KINDS[kind])
    whole = replace(config, run_dir=config.run_dir.with_name("whole"))
    train(whole)
    chance = random.Random(kind)
    kills, is_done = 0, False
    while not is_done:
        before = checkpoint(config)["progress"]["step"] if kills else 0
        # Two times in three far enough to get past the next checkpoint.
        count = chance.randrange(1, 13) if kills < 5 else 100
        with monkeypatch.context() as patch:
            die_after(patch, count)
            try:
                train(replace(config, resume=kills > 0))
                is_done = True
            except RuntimeError as error:
                assert str(error) == "killed"
                kills += 1
                # At most the steps since the last checkpoint are lost.
                assert checkpoint(config)["progress"]["step"] >= (before + count) // 4 * 4
    assert kills == 5
    assert_same_run(config, whole)
    kept = sorted(p.name for p in (config.run_dir / "checkpoint").glob("step-*"))
    assert kept == ["step-000000056.pt", "step-000000060.pt"]


def test_what_the_kinds_are_about_takes_part(config):
    """See that the state whose loss would go unnoticed is there."""
    newton = replace(config, **KINDS["lstm-psgd-newton"], steps=8, run_dir=config.run_dir / "n")
    train(newton)
    content = checkpoint(newton)
    assert [len(memory) for memory in content["memories"]] == [4, 4]  # 2 layers of h and c
    scaled = replace(config, **KINDS["gpt-fp16-scaler"], steps=8, run_dir=config.run_dir / "s")
    train(scaled)
    assert checkpoint(scaled)["scaler"]["scale"] > 1
    averaged = replace(config, **KINDS["gru-sgd-plateau-averaged"], run_dir=config.run_dir / "a")
    train(averaged)
    content = checkpoint(averaged)
    assert content["averaging"]["count"] == 54
    factors = {record["train/lr_factor"] for record in metrics(averaged) if "train/loss" in record}
    assert len(factors) > 5  # lengths vary


@pytest.mark.slow
def test_a_process_killed_at_random_moments_loses_nothing(config, text_file):
    config = replace(config, steps=400, checkpoint_every=20, eval_every=100)
    whole = replace(config, run_dir=config.run_dir.with_name("whole"))
    seconds = train(whole).summary["seconds"]
    line = [sys.executable, "scripts/train_lm.py", "smoke", "--data.path", str(text_file)]
    line += ["--model.dropout", "0.1", "--steps", "400", "--log-every", "7", "--eval-every", "100"]
    line += ["--checkpoint-every", "20", "--keep", "2", "--run-dir", str(config.run_dir)]
    chance = random.Random(0)
    killed = 0
    while killed < 2:
        resume = ["--resume"] if (config.run_dir / "checkpoint" / "last.pt").is_file() else []
        fresh = [] if resume else ["--overwrite"]
        process = subprocess.Popen([*line, *resume, *fresh], cwd=ROOT, stdout=subprocess.DEVNULL)
        _wait_for_progress(process, config.run_dir)
        time.sleep(chance.uniform(0, seconds / 6))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
    done = subprocess.run([*line, "--resume"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "finished: 400 steps" in done.stdout
    assert killed
    assert_same_run(config, whole)


@pytest.mark.slow
def test_a_run_killed_between_two_writes_ends_like_one_that_was_not(tiny_config, monkeypatch):
    """Die before the best checkpoint, the last one, its kept copy, and every line of the log."""
    config = replace(tiny_config, steps=4, eval_every=2, checkpoint_every=3, log_every=3, keep=2)
    whole = replace(config, run_dir=config.run_dir.with_name("whole"))
    train(whole)
    is_killed, moment = True, 1  # the first write is that of the configuration
    while is_killed:
        moment += 1
        with monkeypatch.context() as patch:
            _die_before_write(patch, moment)
            try:
                train(replace(config, overwrite=True))
                is_killed = False
            except RuntimeError as error:
                assert str(error) == "killed"
        train(replace(config, resume=True))
        assert_same_run(config, whole)
        names = [{p.name for p in (c.run_dir / "checkpoint").iterdir()} for c in (config, whole)]
        assert names[0] == names[1], moment
    assert moment > 12


def test_a_lost_checkpoint_is_told(tiny_config):
    train(tiny_config)
    (tiny_config.run_dir / "checkpoint" / "last.pt").unlink()
    with pytest.raises(InputError, match=r"There is no checkpoint .*last.pt"):
        train(replace(tiny_config, resume=True))


def _die_before_write(patch, moment):
    """Break the process off before it writes for the `moment`-th time."""
    writes = []

    def dying(original):
        def write(*arguments):
            writes.append(1)
            if len(writes) == moment:
                raise RuntimeError("killed")
            return original(*arguments)

        return write

    patch.setattr(Path, "replace", dying(Path.replace))
    patch.setattr(RunFolder, "log", dying(RunFolder.log))


def _wait_for_progress(process, folder):
    """Wait until a process has written to its run's log, or has ended."""
    log = folder / "metrics.jsonl"
    before = log.stat().st_mtime_ns if log.is_file() else 0
    while process.poll() is None and not (log.is_file() and log.stat().st_mtime_ns > before):
        time.sleep(0.01)
