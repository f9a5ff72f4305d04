"""Generalized advantage estimation that tells a time limit from a failure.

Shape legend: `T` steps, `n` environments.
Source: Schulman et al. 2016 (arXiv 1506.02438), equation 16; the truncation bootstrap follows
Pardo et al. 2018 (arXiv 1712.00378), section 3.
"""

import numpy as np

from psgd_rl.types import BoolArray, FloatArray


def estimate_advantages(
    rewards: FloatArray,
    values: FloatArray,
    next_values: FloatArray,
    terminated: BoolArray,
    truncated: BoolArray,
    is_real: BoolArray,
    *,
    gamma: float,
    gae_lambda: float,
) -> FloatArray:
    """Estimate by how much each action was better than the policy's average.

    Invariant: with `gae_lambda = 1` and exact values the advantage of an episode's step is its
    discounted return, bootstrapped at a truncation, minus its value.

    Args:
        rewards: (T, n).
        values: (T, n), V(s_t).
        next_values: (T, n), V(s_{t+1}) of the state that the action led to, before any reset.
        terminated: (T, n), whether the episode failed: V counts as 0 after it.
        truncated: (T, n), whether the episode ran out of time: V goes on after it.
        is_real: (T, n), whether the step was an action's outcome; nothing crosses one that was not.
        gamma: Discount per step.
        gae_lambda: Decay of the weight of later steps.

    Returns:
        (T, n), the advantages; 0 where the step was not real.
    """
    done = terminated | truncated | ~is_real
    future = gamma * np.where(terminated, 0.0, next_values)  # gamma V(s_{t+1}), 0 after a failure
    # delta_t = r_t + gamma V(s_{t+1}) - V(s_t)
    delta = np.where(is_real, rewards + future - values, 0.0)
    decay = np.where(done, 0.0, gamma * gae_lambda)  # nothing crosses the end of an episode
    advantages = np.empty_like(delta)
    following = np.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        following = delta[t] + decay[t] * following  # A_t = delta_t + gamma lambda A_{t+1}
        advantages[t] = following
    return advantages
