"""Collecting and learning together: a time limit does not lower the value of a state."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from psgd_optim.config import AdamWConfig, build
from psgd_rl.actor_critic import ActingPolicy, CategoricalActor, Critic
from psgd_rl.config import PPOConfig
from psgd_rl.envs import Step
from psgd_rl.normalize import RewardScaler, RunningMoments
from psgd_rl.rollout import Collector
from psgd_rl.spaces import Discrete
from psgd_rl.update import Updater

GAMMA, ENVS, OBSERVED, LIMIT = 0.9, 8, 2, 10


class ConstantReward:
    """Reward 1 for each step, observations that say nothing, and an end after some steps."""

    num_envs, observation_size, actions = ENVS, OBSERVED, Discrete(count=3)

    def __init__(self) -> None:
        self._generator = np.random.default_rng(0)
        self._elapsed = np.arange(ENVS)  # the ends are spread over the steps
        self.observation = self._observe()

    def _observe(self):
        return self._generator.normal(size=(ENVS, OBSERVED))

    def step(self, action) -> Step:
        assert action.dtype == np.int64
        self._elapsed += 1
        truncated = self._elapsed >= LIMIT
        self._elapsed[truncated] = 0
        self.observation = self._observe()
        return Step(
            observation=self.observation,
            reward=np.ones(ENVS),
            terminated=np.zeros(ENVS, dtype=bool),
            truncated=truncated,
            final_observation=self._observe(),
            is_real=np.ones(ENVS, dtype=bool),
        )


def learned_value(*, bootstraps: bool) -> float:
    """Train on it and return the mean value of its states, in units of the reward."""
    generator = torch.Generator().manual_seed(0)
    actor = CategoricalActor((OBSERVED, 8, 3), generator=generator)
    critic = Critic((OBSERVED, 8, 1), generator=generator)
    scaler = RewardScaler(ENVS, GAMMA)
    nets = (actor, critic)
    optimizers = tuple(build(net.named_parameters(), AdamWConfig(lr=1e-2)) for net in nets)
    config = PPOConfig(gamma=GAMMA, epochs=4, minibatches=1)
    updater = Updater(actor, critic, optimizers, scaler, config, seed=0)
    collector = Collector(ConstantReward(), RunningMoments((OBSERVED,)), 30, seed=0)
    for _ in range(80):
        rollout = collector.collect(ActingPolicy(actor))
        if not bootstraps:
            nowhere = np.zeros_like(rollout.truncated)
            rollout = replace(rollout, terminated=rollout.truncated, truncated=nowhere)
        updater.update(rollout)
    values = critic(torch.from_numpy(rollout.observations).flatten(0, 1))
    return values.mean().item() / scaler.scale(np.ones(1)).item()


def test_value_sees_past_the_time_limit():
    assert learned_value(bootstraps=True) == pytest.approx(1 / (1 - GAMMA), rel=0.05)


def test_negative_control_without_the_bootstrap_it_does_not():
    assert learned_value(bootstraps=False) < 0.7 / (1 - GAMMA)
