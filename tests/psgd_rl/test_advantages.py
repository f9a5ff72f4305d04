"""Advantages against a slow reference written from the definition."""

import numpy as np
import pytest

from psgd_rl.advantages import estimate_advantages

GAMMA, LAMBDA = 0.97, 0.9


def slow_advantage(rewards, values, next_values, terminated, truncated, t):
    """Sum (gamma lambda)^k delta_{t+k} up to the end of the episode, one environment."""
    total, weight = 0.0, 1.0
    for k in range(t, len(rewards)):
        bootstrap = 0.0 if terminated[k] else next_values[k]
        total += weight * (rewards[k] + GAMMA * bootstrap - values[k])
        if terminated[k] or truncated[k]:
            break
        weight *= GAMMA * LAMBDA
    return total


@pytest.mark.parametrize("ends", ["none", "terminated", "truncated", "mixed", "both at once"])
def test_equals_the_definition(ends):
    generator = np.random.default_rng(1)
    steps, envs = 40, 5
    rewards, values, next_values = generator.normal(size=(3, steps, envs))
    terminated, truncated = generator.random((2, steps, envs)) < 0.15
    terminated &= ends in ("terminated", "mixed", "both at once")
    truncated &= ends in ("truncated", "mixed")
    if ends == "both at once":
        truncated = terminated.copy()
    parts = (rewards, values, next_values, terminated, truncated)
    is_real = np.ones_like(terminated)
    got = estimate_advantages(*parts, is_real, gamma=GAMMA, gae_lambda=LAMBDA)
    for n in range(envs):
        columns = [part[:, n] for part in parts]
        expected = [slow_advantage(*columns, t) for t in range(steps)]
        np.testing.assert_allclose(got[:, n], expected, rtol=1e-12, atol=1e-12)


def test_nothing_crosses_a_step_that_is_not_real():
    generator = np.random.default_rng(1)
    rewards, values, next_values = generator.normal(size=(3, 20, 3))
    never = np.zeros((20, 3), dtype=bool)
    is_real = ~never
    is_real[7] = False
    parts = (rewards, values, next_values, never, never)
    got = estimate_advantages(*parts, is_real, gamma=GAMMA, gae_lambda=LAMBDA)
    pieces = [
        estimate_advantages(*(x[part] for x in (*parts, is_real)), gamma=GAMMA, gae_lambda=LAMBDA)
        for part in (slice(0, 7), slice(8, 20))
    ]
    np.testing.assert_array_equal(got, np.concatenate((pieces[0], np.zeros((1, 3)), pieces[1])))


def fitted_value(*, terminated: bool) -> float:
    """Repeat V <- mean(A + V) for one state, reward 1, and an end every 10 steps."""
    ends = np.zeros((50, 3), dtype=bool)
    ends[9::10] = True
    never = np.zeros_like(ends)
    value = 0.0
    for _ in range(300):
        values = np.full(ends.shape, value)
        advantages = estimate_advantages(
            np.ones(ends.shape),
            values,
            values,
            ends if terminated else never,
            never if terminated else ends,
            ~never,
            gamma=0.9,
            gae_lambda=0.95,
        )
        value = float((advantages + values).mean())
    return value


def test_time_limits_do_not_lower_the_value():
    assert fitted_value(terminated=False) == pytest.approx(1 / (1 - 0.9))


def test_failures_lower_the_value():
    assert fitted_value(terminated=True) < 8
