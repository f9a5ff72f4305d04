"""Collecting experience: a fixed number of steps of every environment under one policy.

Shape legend: `T` steps, `n` environments, `o` observations, `a` action components.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from psgd_rl.actor_critic import ActingPolicy
from psgd_rl.distributions import ActionArray, Float32Array
from psgd_rl.envs import Step, VectorEnv
from psgd_rl.normalize import RunningMoments
from psgd_rl.spaces import ActionSpace, Box
from psgd_rl.types import BoolArray, FloatArray


@dataclass(frozen=True, kw_only=True)
class Episode:
    """An episode that ended.

    Args:
        total: Sum of its rewards, as the environment gave them.
        length: Steps.
    """

    total: float
    length: int


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What one collection gives; the arrays are overwritten by the next one.

    Args:
        observations: (T, n, o), normalised with the statistics from before the collection.
        next_observations: (T, n, o), what each action led to, before any reset; normalised too.
        actions: (T, n, a), as drawn, before clipping to the environment's bounds; (T, n) where
            actions are numbered.
        rewards: (T, n), as the environment gave them.
        terminated: (T, n), whether an episode failed.
        truncated: (T, n), whether an episode ran out of time.
        is_real: (T, n), whether the step was the action's outcome; nothing is learned from others.
        episodes: Those that ended.
    """

    observations: Float32Array
    next_observations: Float32Array
    actions: ActionArray
    rewards: FloatArray
    terminated: BoolArray
    truncated: BoolArray
    is_real: BoolArray
    episodes: list[Episode]


def allowed(action: ActionArray, space: ActionSpace) -> ActionArray:
    """Return actions clipped to an environment's bounds, if it has some.

    Args:
        action: (n, a) or (n,).
        space: What the environment takes.

    Returns:
        The same shape.
    """
    return np.clip(action, space.low, space.high) if isinstance(space, Box) else action


class Collector:
    """Steps the environments and remembers where they are.

    Args:
        env: The environments.
        moments: Normalises the observations; updated once per collection, at its end.
        steps: `T`.
        seed: Of the action noise.
    """

    def __init__(self, env: VectorEnv, moments: RunningMoments, steps: int, seed: int) -> None:
        self._env = env
        self._moments = moments
        self._generator = np.random.default_rng(seed)
        self._totals = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, dtype=np.int64)
        shape = (steps, env.num_envs)
        self._raw = np.zeros((*shape, env.observation_size))
        self._observations = np.zeros(self._raw.shape, dtype=np.float32)
        self._next_observations = np.zeros_like(self._observations)
        self._actions: ActionArray = (
            np.zeros((*shape, env.actions.size), dtype=np.float32)
            if isinstance(env.actions, Box)
            else np.zeros(shape, dtype=np.int64)
        )
        self._rewards = np.zeros(shape)
        self._terminated = np.zeros(shape, dtype=bool)
        self._truncated = np.zeros(shape, dtype=bool)
        self._is_real = np.ones(shape, dtype=bool)

    def collect(self, policy: ActingPolicy) -> Rollout:
        """Collect `T` steps of every environment.

        Args:
            policy: Chooses the actions.

        Returns:
            The experience, in this object's buffers.

        Raises:
            InputError: If the environment gives a value that is not finite.
        """
        # All noise at once: one call instead of T, and the same stream.
        noise = policy.noise(self._generator, self._rewards.shape)
        episodes: list[Episode] = []
        observation = self._moments.normalize(self._env.observation)
        for t in range(len(self._raw)):
            self._raw[t] = self._env.observation
            self._observations[t] = observation
            action = policy.act(observation, noise[t])
            self._actions[t] = action
            step = self._env.step(allowed(action, self._env.actions))
            self._rewards[t], self._terminated[t] = step.reward, step.terminated
            self._truncated[t], self._is_real[t] = step.truncated, step.is_real
            done = step.terminated | step.truncated
            # Normalised once, for the step that it ends and for the one that it begins.
            observation = self._moments.normalize(step.observation)
            self._next_observations[t] = observation
            episodes += self._count(step, done)
            if done.any():
                self._next_observations[t] = self._moments.normalize(step.final_observation)
        # Only now: during the collection and its update all normalisation is alike.
        self._moments.update(self._raw[self._is_real])
        return Rollout(
            observations=self._observations,
            next_observations=self._next_observations,
            actions=self._actions,
            rewards=self._rewards,
            terminated=self._terminated,
            truncated=self._truncated,
            is_real=self._is_real,
            episodes=episodes,
        )

    def _count(self, step: Step, done: BoolArray) -> list[Episode]:
        """Add a step to the running episodes and return those that it ended."""
        self._totals += step.reward
        self._lengths += step.is_real
        ended = [
            Episode(total=float(self._totals[i]), length=int(self._lengths[i]))
            for i in np.flatnonzero(done)
        ]
        self._totals[done] = 0.0
        self._lengths[done] = 0
        return ended

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next collection depends on but the policy and the moments."""
        return {
            "env": self._env.state_dict(),
            "generator": self._generator.bit_generator.state,
            "totals": torch.from_numpy(self._totals.copy()),
            "lengths": torch.from_numpy(self._lengths.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: Of a collector with the same environment and number of simulations.

        Raises:
            InputError: If it has another number of simulations.
        """
        self._env.load_state_dict(state["env"])
        self._generator.bit_generator.state = state["generator"]
        if self._env.is_restorable:
            self._totals[...] = state["totals"].numpy()
            self._lengths[...] = state["lengths"].numpy()
