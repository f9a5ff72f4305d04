"""Running means and variances that make observations and rewards of unit size.

One set of statistics is shared by all environments and merged once per rollout, so a rollout and
the updates on it see the same numbers. Shape legend: `T` steps, `n` environments.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from psgd_rl.types import BoolArray, FloatArray

CLIP = 10.0
"""Largest absolute normalised value; the habit of the field since OpenAI's Baselines."""
EPSILON = 1e-8


class RunningMoments:
    """Mean and variance of everything seen so far, in float64.

    Args:
        shape: Of one sample.
    """

    def __init__(self, shape: Sequence[int] = ()) -> None:
        self.count = 0
        self.mean: FloatArray = np.zeros(shape)
        self.variance: FloatArray = np.ones(shape)

    def update(self, samples: FloatArray) -> None:
        """Merge new samples by the parallel formula of Chan, Golub and LeVeque.

        Args:
            samples: (k, *shape), at least one.
        """
        count = self.count + len(samples)
        share = len(samples) / count  # of the new samples in all
        delta = samples.mean(axis=0) - self.mean
        between = share * (1 - share) * np.square(delta)
        self.variance = (1 - share) * self.variance + share * samples.var(axis=0) + between
        self.mean = self.mean + share * delta
        self.count = count

    @property
    def deviation(self) -> FloatArray:
        """Square root of the variance, kept away from zero."""
        deviation: FloatArray = np.sqrt(self.variance + EPSILON)
        return deviation

    def normalize(self, values: FloatArray) -> NDArray[np.float32]:
        """Return values shifted and scaled to zero mean and unit variance, clipped.

        Args:
            values: (..., *shape).

        Returns:
            The same shape, float32.
        """
        scaled = (values - self.mean) / self.deviation
        return np.clip(scaled, -CLIP, CLIP).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics as tensors."""
        return {
            "count": self.count,
            "mean": torch.as_tensor(self.mean).clone(),
            "variance": torch.as_tensor(self.variance).clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the statistics of a `state_dict`."""
        self.count = state["count"]
        self.mean = state["mean"].numpy().copy()
        self.variance = state["variance"].numpy().copy()


class RewardScaler:
    """Divides rewards by the deviation of the discounted returns that they add up to.

    Args:
        num_envs: `n`.
        gamma: Discount per step.
    """

    def __init__(self, num_envs: int, gamma: float) -> None:
        self.gamma = gamma
        self.moments = RunningMoments()
        self._returns: FloatArray = np.zeros(num_envs)

    def update(self, rewards: FloatArray, done: BoolArray, is_real: BoolArray) -> None:
        """Take in the rewards of one rollout.

        Args:
            rewards: (T, n), as the environments gave them.
            done: (T, n), whether an episode ended with that step.
            is_real: (T, n), whether the step was an action's outcome; the others do not count.
        """
        returns = np.empty_like(rewards)
        for t in range(len(rewards)):
            self._returns = self.gamma * self._returns + rewards[t]  # G_t = gamma G_{t-1} + r_t
            returns[t] = self._returns
            self._returns = np.where(done[t], 0.0, self._returns)
        self.moments.update(returns[is_real])

    def scale(self, rewards: FloatArray) -> FloatArray:
        """Return rewards in units of the returns' deviation, clipped.

        Args:
            rewards: Any shape.

        Returns:
            The same shape.
        """
        return np.clip(rewards / self.moments.deviation, -CLIP, CLIP)

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics and the returns so far of the running episodes."""
        returns = torch.from_numpy(self._returns.copy())
        return {"moments": self.moments.state_dict(), "returns": returns}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.moments.load_state_dict(state["moments"])
        self._returns = state["returns"].numpy().copy()
