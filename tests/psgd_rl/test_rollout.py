"""Collecting: what is stored, what is clipped, and how it continues."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from psgd_rl.actor_critic import ActingPolicy, GaussianActor
from psgd_rl.envs import Step
from psgd_rl.envs.mujoco_env import MujocoEnv
from psgd_rl.envs.tasks import HALF_CHEETAH
from psgd_rl.normalize import RunningMoments
from psgd_rl.rollout import Collector
from psgd_rl.spaces import Box

TASK = replace(HALF_CHEETAH, max_episode_steps=15)


@pytest.fixture
def policy() -> ActingPolicy:
    generator = torch.Generator().manual_seed(0)
    return ActingPolicy(
        GaussianActor((17, 8, 6), log_std=0.5, log_std_bounds=(-4.0, 1.0), generator=generator)
    )


def make_collector(task=TASK, steps=20, seed=0) -> Collector:
    return Collector(MujocoEnv(task, [1, 2, 3]), RunningMoments((17,)), steps, seed)


def copied(rollout):
    return {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in vars(rollout).items()}


def test_actions_are_stored_unclipped_and_stepped_clipped(policy):
    rollout = make_collector().collect(policy)
    assert np.abs(rollout.actions).max() > 1
    env = MujocoEnv(TASK, [1, 2, 3])
    for t, action in enumerate(rollout.actions):
        step = env.step(np.clip(action, -1, 1))
        np.testing.assert_array_equal(rollout.rewards[t], step.reward)
        np.testing.assert_array_equal(rollout.truncated[t], step.truncated)
        np.testing.assert_array_equal(rollout.terminated[t], step.terminated)


def test_next_observation_is_from_before_the_reset(policy):
    rollout = make_collector().collect(policy)
    env, plain = MujocoEnv(TASK, [1, 2, 3]), RunningMoments((17,))
    for t, action in enumerate(rollout.actions):
        np.testing.assert_array_equal(rollout.observations[t], plain.normalize(env.observation))
        step = env.step(np.clip(action, -1, 1))
        final = plain.normalize(step.final_observation)
        np.testing.assert_array_equal(rollout.next_observations[t], final)
    ends = rollout.truncated[:-1].any(axis=1)
    same = (rollout.next_observations[:-1] == rollout.observations[1:]).all(axis=(1, 2))
    np.testing.assert_array_equal(same, ~ends)
    assert ends.sum() == 1


def test_finished_episodes_have_their_raw_return_and_length(policy):
    collector = make_collector(steps=10)
    first, second = copied(collector.collect(policy)), copied(collector.collect(policy))
    assert first["episodes"] == []
    assert [episode.length for episode in second["episodes"]] == [15, 15, 15]
    rewards = np.concatenate((first["rewards"], second["rewards"]))[:15].sum(axis=0)
    totals = [episode.total for episode in second["episodes"]]
    np.testing.assert_allclose(totals, rewards, rtol=1e-12)


def test_statistics_change_only_at_the_end(policy):
    moments = RunningMoments((17,))
    collector = Collector(MujocoEnv(TASK, [1, 2, 3]), moments, 20, 0)
    actions = collector.collect(policy).actions
    env, seen = MujocoEnv(TASK, [1, 2, 3]), []
    for action in actions:
        seen.append(env.observation)
        env.step(np.clip(action, -1, 1))
    assert moments.count == 60
    np.testing.assert_allclose(moments.mean, np.mean(seen, axis=(0, 1)), rtol=1e-12)
    frozen = RunningMoments((17,))
    frozen.load_state_dict(moments.state_dict())
    second = collector.collect(policy)
    np.testing.assert_array_equal(second.observations[0], frozen.normalize(env.observation))
    assert moments.count == 120


def test_noise_has_the_policys_deviation(policy):
    rollout = make_collector(steps=400).collect(policy)
    means = policy.best(rollout.observations.reshape(-1, 17))
    noise = rollout.actions.reshape(-1, 6) - means
    np.testing.assert_allclose(noise.std(axis=0), math.exp(0.5), rtol=0.1)
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=0.2)


class PhantomEnv:
    """Episodes of 3 steps, after each of which one step is no action's outcome."""

    num_envs, observation_size = 1, 1
    actions = Box(low=np.full(1, -1, np.float32), high=np.ones(1, np.float32))

    def __init__(self) -> None:
        self._count = 0
        self.observation = np.zeros((1, 1))

    def step(self, action) -> Step:
        place = self._count % 4  # the last of 4 is the phantom
        self._count += 1
        self.observation = np.full((1, 1), [1.0, 2.0, 1000.0, 0.0][place])
        return Step(
            observation=self.observation,
            reward=np.full(1, float(place < 3)),
            terminated=np.full(1, place == 2),
            truncated=np.zeros(1, dtype=bool),
            final_observation=self.observation,
            is_real=np.full(1, place < 3),
        )


def test_steps_that_are_not_real_are_told_apart_and_not_counted():
    moments = RunningMoments((1,))
    actor = GaussianActor(
        (1, 4, 1),
        log_std=0.0,
        log_std_bounds=(-4.0, 1.0),
        generator=torch.Generator().manual_seed(0),
    )
    rollout = Collector(PhantomEnv(), moments, 8, 0).collect(ActingPolicy(actor))
    np.testing.assert_array_equal(rollout.is_real[:, 0], [True, True, True, False] * 2)
    assert [(episode.total, episode.length) for episode in rollout.episodes] == [(3.0, 3)] * 2
    # What real actions were chosen from: 0, 1 and 2, never the end of an episode.
    assert (moments.count, moments.mean.item()) == (6, 1.0)


def test_restored_collector_continues_bit_for_bit(policy, tmp_path):
    one, two = make_collector(), make_collector(seed=5)
    one.collect(policy)
    torch.save(one.state_dict(), tmp_path / "state")
    torch.save(one._moments.state_dict(), tmp_path / "moments")
    two.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    two._moments.load_state_dict(torch.load(tmp_path / "moments", weights_only=True))
    for _ in range(2):
        expected, got = copied(one.collect(policy)), copied(two.collect(policy))
        for name, value in expected.items():
            np.testing.assert_equal(got[name], value, err_msg=name)
