"""A run whose process is killed at random moments ends like one that was not: bit for bit."""

import json
import multiprocessing
import random
import signal
import time
from dataclasses import replace

import pytest
import torch

from psgd_optim.config import AdamWConfig
from psgd_optim.tools.checkpoint import read_checkpoint
from psgd_optim.tools.run_folder import LAST, METRICS
from psgd_rl import PRESETS, train
from psgd_rl.config import NetworkConfig, TrainConfig
from psgd_rl.envs.tasks import HALF_CHEETAH, TASKS
from psgd_rl.evaluate import KIND

KILLS = 5


def work(config: TrainConfig, resume: bool) -> None:
    """Train in a process of its own; the environment's episodes are as short as the parent's."""
    torch.set_num_threads(1)
    train(replace(config, resume=resume))


def content(config):
    """Return a run's last checkpoint as bytes per entry, and its log, both without the clock."""
    kept = read_checkpoint(config.run_dir / LAST, KIND)
    for name in ("seconds", "env_threads", "config"):  # the last names the folder
        kept.pop(name)
    text = (config.run_dir / METRICS).read_text(encoding="utf-8")
    log = [json.loads(line) for line in text.splitlines()]
    return flat(kept), [{k: v for k, v in record.items() if k != "charts/SPS"} for record in log]


def flat(value, path=""):
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, part in items for k, v in flat(part, f"{path}/{key}").items()}
    return {path: value.numpy().tobytes() if isinstance(value, torch.Tensor) else value}


@pytest.mark.slow
@pytest.mark.usefixtures("short_episodes")
@pytest.mark.parametrize("kind", ["psgd", "adamw"])
def test_a_process_killed_at_random_moments_loses_nothing(kind, tmp_path):
    config = replace(
        PRESETS["smoke"],
        total_steps=40 * 48,
        num_envs=3,
        rollout_steps=16,
        network=NetworkConfig(hidden=(4,)),
        eval_every=7,
        eval_episodes=2,
        save_every=3,
        run_dir=tmp_path / "parts",
    )
    if kind == "adamw":
        config = replace(config, actor=AdamWConfig(), critic=AdamWConfig())
    whole = replace(config, run_dir=tmp_path / "whole")
    seconds = train(whole).seconds
    chance = random.Random(kind)
    # A fork starts at once, with the same short episodes.
    fork = multiprocessing.get_context("fork")
    kills = 0
    while kills < KILLS:
        has_checkpoint = (config.run_dir / LAST).is_file()
        part = replace(config, overwrite=not has_checkpoint)
        process = fork.Process(target=work, args=(part, has_checkpoint))
        process.start()
        time.sleep(chance.uniform(0, seconds / KILLS))
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    assert kills
    assert TASKS[HALF_CHEETAH.env_id].max_episode_steps == 20
    has_checkpoint = (config.run_dir / LAST).is_file()
    train(replace(config, resume=has_checkpoint, overwrite=not has_checkpoint))
    assert content(config) == content(whole)
