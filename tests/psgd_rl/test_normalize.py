"""Running statistics against numpy over everything seen."""

import numpy as np
import pytest
import torch

from psgd_rl.normalize import CLIP, RewardScaler, RunningMoments


@pytest.mark.parametrize("sizes", [[5], [1, 1, 7], [100, 3, 50]])
def test_merged_moments_equal_those_of_all_samples(sizes):
    generator = np.random.default_rng(0)
    parts = [generator.normal(1e3, [1, 0.1, 7], (size, 3)) + i for i, size in enumerate(sizes)]
    moments = RunningMoments((3,))
    for part in parts:
        moments.update(part)
    everything = np.concatenate(parts)
    assert moments.count == len(everything)
    np.testing.assert_allclose(moments.mean, everything.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, everything.var(axis=0), rtol=1e-9, atol=1e-12)


def test_normalized_samples_have_unit_size_and_are_clipped():
    samples = np.random.default_rng(0).normal(5, 3, (10_000, 2))
    moments = RunningMoments((2,))
    moments.update(samples)
    normal = moments.normalize(samples)
    assert normal.dtype == np.float32
    np.testing.assert_allclose(normal.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(normal.std(axis=0), 1, atol=1e-5)
    assert moments.normalize(np.full((1, 2), 1e9)).max() == CLIP


def test_nothing_seen_leaves_values_alone():
    np.testing.assert_array_equal(
        RunningMoments((2,)).normalize(np.array([[1.0, -2.0]])), [[1, -2]]
    )


def test_a_constant_is_no_division_by_zero():
    moments = RunningMoments((1,))
    moments.update(np.full((4, 1), 3.0))
    assert moments.normalize(np.full((1, 1), 3.0)) == 0


def slow_returns(rewards, done, gamma):
    """One environment after the other, one step after the other."""
    result = []
    for n in range(rewards.shape[1]):
        value = 0.0
        for t in range(len(rewards)):
            value = gamma * value + rewards[t, n]
            result.append(value)
            if done[t, n]:
                value = 0.0
    return np.array(result)


def test_reward_scale_is_the_deviation_of_discounted_returns_over_rollouts():
    generator = np.random.default_rng(0)
    rewards, done = generator.normal(2, 3, (60, 4)), generator.random((60, 4)) < 0.1
    is_real = np.ones_like(done)
    scaler = RewardScaler(4, 0.9)
    for part in (slice(0, 20), slice(20, 60)):
        scaler.update(rewards[part], done[part], is_real[part])
    expected = slow_returns(rewards, done, 0.9).std()
    np.testing.assert_allclose(scaler.scale(np.array([1.0])), 1 / expected, rtol=1e-6)
    # Negative control: returns that run on over the ends of episodes differ.
    assert abs(slow_returns(rewards, np.zeros_like(done), 0.9).std() / expected - 1) > 0.01


def test_steps_that_are_not_real_leave_the_reward_scale_alone():
    generator = np.random.default_rng(0)
    rewards, done = generator.normal(2, 3, (30, 1)), generator.random((30, 1)) < 0.2
    plain, phantom = RewardScaler(1, 0.9), RewardScaler(1, 0.9)
    plain.update(rewards, done, np.ones_like(done))
    # After every end one more step, of which nothing is known.
    places = np.flatnonzero(done) + 1
    is_real = np.insert(np.ones(30, dtype=bool), places, False)[:, None]
    phantom.update(
        np.insert(rewards, places, 0.0, axis=0), np.insert(done, places, False, axis=0), is_real
    )
    assert is_real.sum() == 30 < len(is_real)
    assert phantom.moments.variance == plain.moments.variance


def test_state_goes_through_a_checkpoint(tmp_path):
    generator = np.random.default_rng(0)
    real = np.ones((5, 3), dtype=bool)
    parts = [
        (generator.normal(size=(5, 3)), generator.random((5, 3)) < 0.2, real) for _ in range(2)
    ]
    one, two = RewardScaler(3, 0.9), RewardScaler(3, 0.9)
    one.update(*parts[0])
    torch.save(one.state_dict(), tmp_path / "state")
    two.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for scaler in (one, two):
        scaler.update(*parts[1])
    assert one.moments.variance == two.moments.variance
    assert one.moments.mean == two.moments.mean
