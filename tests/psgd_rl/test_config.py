"""Configurations refuse what cannot work, naming the value and the way out."""

from dataclasses import replace

import pytest

from psgd_optim.types import InputError
from psgd_rl.config import NetworkConfig, PPOConfig, TrainConfig
from psgd_rl.presets import ABOUT, PRESETS, TUNED


def test_presets_use_psgd_for_both_networks():
    assert PRESETS.keys() == ABOUT.keys() == TUNED.keys()
    for preset in PRESETS.values():
        assert (preset.actor.name, preset.critic.name) == ("psgd", "psgd")


@pytest.mark.parametrize(("steps", "iterations"), [(1, 1), (2048, 1), (2049, 2), (60_000, 30)])
def test_steps_are_rounded_up_to_whole_rollouts(steps, iterations):
    assert TrainConfig(total_steps=steps).iterations == iterations


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(env_id="HalfCheeta-v5"), "did you mean HalfCheetah-v5"),
        (lambda: TrainConfig(total_steps=0), "total_steps = 0; give 1 or more"),
        (lambda: TrainConfig(num_envs=0), "num_envs = 0"),
        (lambda: TrainConfig(threads=0), "--threads 0; give 1 to 256"),
        (lambda: TrainConfig(env_threads=-1), "--env-threads -1; give 0 to 256"),
        (lambda: TrainConfig(eval_every=-1), "eval_every = -1; give 0 or more"),
        (lambda: TrainConfig(seed=-1), "seed = -1; give 0 or more"),
        (lambda: replace(TrainConfig(), num_envs=1, rollout_steps=2), "at most .* 2"),
        (lambda: PPOConfig(epochs=0), r"ppo.epochs = 0; give 1 or more"),
        (lambda: PPOConfig(gamma=1.0), r"ppo.gamma = 1.0; give a number between 0 and 1"),
        (lambda: PPOConfig(gae_lambda=1.1), "gae_lambda = 1.1"),
        (lambda: PPOConfig(clip=0.0), "clip = 0.0; give a number above 0"),
        (lambda: PPOConfig(target_kl=float("nan")), "target_kl = nan"),
        (lambda: PPOConfig(max_clip_fraction=1.1), "max_clip_fraction = 1.1; give .* from 0 to 1"),
        (lambda: PPOConfig(value_clip=-1.0), "value_clip = -1.0"),
        (lambda: PPOConfig(normalize_returns="all"), "returns = all; give one of rewards, values"),
        (lambda: NetworkConfig(hidden=()), "hidden = .*one or more widths"),
        (lambda: NetworkConfig(hidden=(8, 0)), "hidden"),
        (lambda: NetworkConfig(log_std=3.0), r"log_std = 3.0; .* \[-4.0, 1.0\]"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(InputError, match=message):
        make()
