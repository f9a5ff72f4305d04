"""Collecting: what is stored, what is clipped, and how it continues."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from psgd_rl.actor_critic import ActingPolicy, Actor
from psgd_rl.envs.mujoco_env import MujocoEnv
from psgd_rl.envs.tasks import HALF_CHEETAH
from psgd_rl.normalize import RunningMoments
from psgd_rl.rollout import Collector

TASK = replace(HALF_CHEETAH, max_episode_steps=15)


@pytest.fixture
def policy() -> ActingPolicy:
    generator = torch.Generator().manual_seed(0)
    return ActingPolicy(
        Actor((17, 8, 6), log_std=0.5, log_std_bounds=(-4.0, 1.0), generator=generator)
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
    means = policy.mean(rollout.observations.reshape(-1, 17))
    noise = rollout.actions.reshape(-1, 6) - means
    np.testing.assert_allclose(noise.std(axis=0), policy.std, rtol=0.1)
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=0.2)


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
