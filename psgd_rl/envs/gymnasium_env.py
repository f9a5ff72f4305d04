"""Any vector environment of gymnasium's interface, whichever way it begins new episodes.

Shape legend: `n` environments, `o` observations, `a` actions.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from psgd_optim.types import InputError
from psgd_rl.envs.copies import Copy, CopyError
from psgd_rl.envs.gymnasium_spaces import decode_actions, encode_observations
from psgd_rl.envs.vector_env import Step, VectorEnv, check_copies, check_finite
from psgd_rl.types import FloatArray

T = TypeVar("T")


class GymnasiumEnv(VectorEnv):
    """A vector environment of gymnasium's as one of ours.

    A state is saved where the environment has `state_dict` and `load_state_dict`: those of the
    vector environment, or those of every environment that `make_env` copied. They have to hold all
    that the next steps depend on, the generator included, as tensors and plain values. Elsewhere
    a loaded state begins new episodes, with seeds that follow from the first ones and the steps.

    Args:
        env_id: Its name.
        env: The vector environment; its metadata says how it begins new episodes.
        seeds: Of the copies.

    Raises:
        InputError: If its spaces or its way to begin episodes are of another kind, or it fails.
    """

    def __init__(
        self, env_id: str, env: gymnasium.vector.VectorEnv[Any, Any, Any], seeds: Sequence[int]
    ) -> None:
        self.env_id, self._env, self._seeds = env_id, env, list(seeds)
        self.num_envs, self.threads = env.num_envs, 1
        self._mode = _autoreset_mode(env_id, env)
        self._encode = encode_observations(env_id, env.single_observation_space)
        self.actions, self._decode = decode_actions(env_id, env.single_action_space)
        self._stores = _stores(env.unwrapped)
        self.is_restorable = bool(self._stores)
        self._steps = 0
        self._done = np.zeros(env.num_envs, dtype=bool)
        self._begin(self._seeds)
        self.observation_size = self.observation.shape[1]

    def step(self, action: NDArray[Any]) -> Step:
        """Advance every copy by one step.

        Args:
            action: (n, a) float32 within the bounds of a `Box`, (n,) int64 for `Discrete`.

        Returns:
            What happened.

        Raises:
            InputError: If a copy fails, or gives a value that is not finite.
        """
        self._steps += 1
        action = self._decode(action)
        given, reward, terminated, truncated, info = self._call(lambda: self._env.step(action))
        # What this mode's environments do after the end of an episode is no action's outcome.
        is_real = ~self._done | (self._mode is not AutoresetMode.NEXT_STEP)
        observation = self._encode(given)
        reward = np.where(is_real, np.array(reward, dtype=np.float64), 0.0)
        terminated = np.array(terminated, dtype=bool) & is_real
        truncated = np.array(truncated, dtype=bool) & is_real
        self._done = terminated | truncated
        final = observation
        if self._done.any():
            final, observation = self._at_the_end(observation, info)
        check_finite(
            self.env_id,
            self._steps,
            {"observation": final, "reward": reward, "first observation": observation},
        )
        self.observation = observation
        return Step(
            observation=observation,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            final_observation=final,
            is_real=is_real,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what the next steps depend on, as tensors and plain values."""
        return {
            "copies": self.num_envs,
            "seeds": self._seeds,
            "steps": self._steps,
            "observation": torch.from_numpy(self.observation.copy()),
            "done": torch.from_numpy(self._done.copy()),
            "stores": [store.state_dict() for store in self._stores],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `state_dict`, or begin new episodes that follow from it.

        Args:
            state: Of the same environment with the same number of copies.

        Raises:
            InputError: If it has another number of copies.
        """
        check_copies(state, self.num_envs)
        self._seeds, self._steps = list(state["seeds"]), state["steps"]
        if not self._stores:
            self._begin([_later_seed(seed, self._steps) for seed in self._seeds])
            return
        for store, saved in zip(self._stores, state["stores"], strict=True):
            store.load_state_dict(saved)
        self.observation = state["observation"].numpy().copy()
        self._done = state["done"].numpy().copy()

    def _begin(self, seeds: Sequence[int]) -> None:
        """Begin new episodes everywhere."""
        # Others are given the first seed; by gymnasium's convention the copies count on from it.
        has_each = isinstance(self._env.unwrapped, SyncVectorEnv | AsyncVectorEnv)
        seed: Any = list(seeds) if has_each else seeds[0]
        observation, _ = self._call(lambda: self._env.reset(seed=seed))
        self.observation = self._encode(observation)
        check_finite(self.env_id, self._steps, {"first observation": self.observation})
        self._done = np.zeros(self.num_envs, dtype=bool)

    def _at_the_end(
        self, observation: FloatArray, info: Mapping[str, Any]
    ) -> tuple[FloatArray, FloatArray]:
        """Return the observations (n, o) before and after the resets of this step."""
        done = self._done
        if self._mode is AutoresetMode.NEXT_STEP:
            return observation, observation
        if self._mode is AutoresetMode.SAME_STEP:
            if "final_obs" not in info:
                raise InputError(
                    f"{self.env_id} ended an episode without info['final_obs'], which its "
                    "autoreset mode SAME_STEP promises; add it, or set another mode."
                )
            final = observation.copy()
            final[done] = self._encode([info["final_obs"][i] for i in np.flatnonzero(done)])
            return final, observation
        begun, _ = self._call(lambda: self._env.reset(options={"reset_mask": done.copy()}))
        return observation, np.where(done[:, None], self._encode(begun), observation)

    def _call(self, act: Callable[[], T]) -> T:
        """Do something with the environment, naming it and the copy if that fails."""
        where, cause = "", None
        try:
            return act()
        except CopyError as error:
            where, cause = f", environment {error.index}", error.__cause__
        except Exception as error:
            cause = error
        raise InputError(
            f"{self.env_id} failed at step {self._steps}{where}: {type(cause).__name__}: {cause}"
        ) from cause


def _autoreset_mode(env_id: str, env: gymnasium.vector.VectorEnv[Any, Any, Any]) -> AutoresetMode:
    """Return when an environment begins new episodes; a guess would learn from the wrong steps."""
    given = env.metadata.get("autoreset_mode")
    for mode in AutoresetMode:
        if given in (mode, mode.value, mode.name):
            return mode
    raise InputError(
        f"{env_id} has metadata['autoreset_mode'] = {given!r}; give one of "
        "gymnasium.vector.AutoresetMode."
    )


def _stores(env: Any) -> list[Any]:  # noqa: ANN401
    """Return the objects that hold the environment's state; none if some of it cannot be saved."""
    if hasattr(env, "state_dict") and hasattr(env, "load_state_dict"):
        return [env]
    copies = env.envs if isinstance(env, SyncVectorEnv) else []
    are_ours = all(isinstance(copy, Copy) and copy.is_restorable for copy in copies)
    return list(copies) if are_ours else []


def _later_seed(seed: int, steps: int) -> int:
    """Return the seed of the episodes that begin when a run goes on after so many steps."""
    return int(np.random.SeedSequence((seed, steps)).generate_state(1)[0])
