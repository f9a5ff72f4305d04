"""Many simulations of one environment, stepped together on `mujoco.batch`.

Equal bit for bit to `gymnasium.make(env_id)`, one per seed, and restorable to the bit. An episode
that ends is reset within the same step (gymnasium calls this SAME_STEP). Shape legend: `n`
environments, `o` observations, `a` actuators.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium.envs.mujoco
import mujoco
import numpy as np
import torch
from gymnasium.utils.seeding import np_random
from mujoco.batch import Batch
from numpy.typing import NDArray

from psgd_optim.types import InputError
from psgd_rl.spaces import ActionSpace, Box
from psgd_rl.tasks import BoolArray, FloatArray, Motion, Task


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step of all environments gives.

    Args:
        observation: (n, o), what the next action is chosen from: of a new episode where one ended.
        reward: (n,), of the action taken.
        terminated: (n,), whether the episode failed: nothing follows it.
        truncated: (n,), whether it ran out of time: its value goes on in `final_observation`.
        final_observation: (n, o), what the action led to, before any reset; equal to
            `observation` where no episode ended.
        is_real: (n,), whether the step was the action's outcome.
    """

    observation: FloatArray
    reward: FloatArray
    terminated: BoolArray
    truncated: BoolArray
    final_observation: FloatArray
    is_real: BoolArray


def load_model(xml_file: str) -> mujoco.MjModel:
    """Load one of gymnasium's models without the attribute that mujoco is going to remove.

    mujoco warns about `settotalmass` on standard error and in a log file in the working directory.
    Scaling the compiled model as it does gives the same numbers.

    Args:
        xml_file: The file's name among gymnasium's assets.

    Returns:
        The compiled model.
    """
    folder = os.path.dirname(gymnasium.envs.mujoco.__file__)
    spec = mujoco.MjSpec.from_file(os.path.join(folder, "assets", xml_file))
    mass = spec.compiler.settotalmass
    spec.compiler.settotalmass = -1.0
    model = spec.compile()
    if mass > 0:
        mujoco.mj_setTotalmass(model, mass)
        mujoco.mj_setConst(model, mujoco.MjData(model))
        # The solver's tolerance depends on these two, which mj_setConst leaves unscaled.
        model.stat.meaninertia = model.dof_M0.mean()
        model.stat.meanmass = model.body_mass[1:].mean()
    return model


class VectorEnv:
    """One simulation per seed, with the state of all of them in one array.

    Args:
        task: The environment.
        seeds: Of each simulation's resets, as given to gymnasium's `reset(seed=...)`.
        threads: Simulations that run at the same time; the results do not depend on it.

    Raises:
        InputError: If there are no seeds or no threads.
    """

    def __init__(self, task: Task, seeds: Sequence[int], *, threads: int = 1) -> None:
        if threads < 1:
            raise InputError(f"Got {threads} environment threads; give 1 or more.")
        if not seeds:
            raise InputError("Got 0 environments; give 1 or more.")
        self.task = task
        model = load_model(task.xml_file)
        self._batch = Batch(model, nsim=len(seeds), nthread=threads)
        self._qpos, self._qvel = self._batch.bind("qpos"), self._batch.bind("qvel")
        self._ctrl = self._batch.bind("ctrl")
        self._seconds = model.opt.timestep * task.frame_skip
        self._rest = model.qpos0.copy()
        self._generators = [np_random(seed)[0] for seed in seeds]
        self._elapsed = np.zeros(len(seeds), dtype=np.int64)
        self._steps = 0
        low, high = model.actuator_ctrlrange.astype(np.float32).T
        self.actions: ActionSpace = Box(low=low, high=high)
        self._reset(np.arange(len(seeds)))
        self.observation = self._observe()

    @property
    def num_envs(self) -> int:
        """The number of simulations, `n`."""
        return len(self._generators)

    @property
    def observation_size(self) -> int:
        """The number of observed values, `o`."""
        return int(self.observation.shape[1])

    def step(self, action: FloatArray) -> Step:
        """Advance every simulation by one control step and reset those that are done.

        Args:
            action: (n, a); rounded to float32, the type of gymnasium's action space.

        Returns:
            What happened.

        Raises:
            InputError: If an observation or a term of the reward is not finite.
        """
        action = np.asarray(action, dtype=np.float32)
        # A copy, because the bound arrays show the state itself.
        before = self._qpos.copy()  # (n, q)
        self._ctrl[...] = action
        self._batch.step(nstep=self.task.frame_skip)
        self._elapsed += 1
        self._steps += 1
        motion = Motion(before, self._qpos, self._qvel, action, self._seconds)
        final = self._observe()
        terms = self.task.reward_terms(motion)
        reward: FloatArray = sum(terms.values(), start=np.zeros(self.num_envs))
        self._check_finite({"observation": final, **terms})
        terminated = self.task.is_terminated(motion)
        truncated = self._elapsed >= self.task.max_episode_steps
        done = terminated | truncated
        self.observation = final
        if done.any():
            self._reset(np.flatnonzero(done))
            self.observation = self._observe()
        return Step(
            observation=self.observation,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            final_observation=final,
            is_real=np.ones(self.num_envs, dtype=bool),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next steps depend on, as tensors and plain values."""
        return {
            "simulations": torch.from_numpy(self._batch.state.copy()),
            "observation": torch.from_numpy(self.observation.copy()),
            "elapsed": torch.from_numpy(self._elapsed.copy()),
            "steps": self._steps,
            "generators": [generator.bit_generator.state for generator in self._generators],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `state_dict`.

        Args:
            state: Of an environment with the same task and the same number of simulations.

        Raises:
            InputError: If it has another number of simulations.
        """
        if len(state["generators"]) != self.num_envs:
            raise InputError(
                f"Got the state of {len(state['generators'])} environments for {self.num_envs}; "
                "give the number that the run was started with."
            )
        self._batch.state[...] = state["simulations"].numpy()
        self.observation = state["observation"].numpy().copy()
        self._elapsed[...] = state["elapsed"].numpy()
        self._steps = state["steps"]
        for generator, saved in zip(self._generators, state["generators"], strict=True):
            generator.bit_generator.state = saved

    def _observe(self) -> FloatArray:
        return self.task.observe(self._qpos, self._qvel)

    def _reset(self, which: NDArray[np.intp]) -> None:
        """Start new episodes from the rest state plus noise."""
        ids = which.astype(np.int32)
        # Also clears the solver's warm start, which would carry the old episode into the new one.
        self._batch.reset(ids, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        for i in which:
            qpos, qvel = self.task.noise(
                self._generators[i], self._qpos.shape[1], self._qvel.shape[1]
            )
            self._qpos[i] = self._rest + qpos
            self._qvel[i] = qvel
        # As gymnasium does: fills the warm start that the first step begins with.
        self._batch.forward(ids)
        self._elapsed[which] = 0

    def _check_finite(self, values: Mapping[str, FloatArray]) -> None:
        """Refuse the first value that is not finite, naming it and its environment."""
        for name, value in values.items():
            if not np.isfinite(value).all():
                bad = ~np.isfinite(value.reshape(self.num_envs, -1)).all(axis=1)
                raise InputError(
                    f"{self.task.env_id} gave a value that is not finite at step {self._steps}: "
                    f"environment {int(bad.argmax())}, {name}; lower the learning rate or the "
                    "largest log-std."
                )
