"""Many simulations of one environment, stepped together on `mujoco.batch`.

Equal bit for bit to `gymnasium.make(env_id)`, one per seed, and restorable to the bit. An episode
that ends is reset within the same step (gymnasium calls this SAME_STEP). Shape legend: `n`
environments, `o` observations, `a` actuators.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium.envs.mujoco
import mujoco
import numpy as np
import torch
from gymnasium.utils.seeding import np_random
from mujoco.batch import Batch, SimulationError
from numpy.typing import NDArray

from psgd_optim.types import InputError
from psgd_rl.envs.tasks.task import Motion, Simulation, Task
from psgd_rl.envs.vector_env import Step, VectorEnv, check_copies, check_finite
from psgd_rl.spaces import Box
from psgd_rl.types import FloatArray

CONTACT_FORCES = "cfrc_ext"
"""The one field that a batch does not compute.

Sensors would, but before the last stage of the Runge-Kutta method, and gymnasium has it after.
"""


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


class MujocoEnv(VectorEnv):
    """One simulation per seed, with the state of all of them in one array.

    Args:
        task: The environment.
        seeds: Of each simulation's resets, as given to gymnasium's `reset(seed=...)`.
        threads: Simulations that run at the same time; the results do not depend on it.

    Raises:
        InputError: If there are no seeds or no threads.
    """

    is_restorable = True

    def __init__(self, task: Task, seeds: Sequence[int], *, threads: int = 1) -> None:
        if threads < 1:
            raise InputError(f"Got {threads} environment threads; give 1 or more.")
        if not seeds:
            raise InputError("Got 0 environments; give 1 or more.")
        self.task, self.env_id = task, task.env_id
        self.num_envs, self.threads = len(seeds), threads
        model = load_model(task.xml_file)
        self._has_contact = CONTACT_FORCES in task.derived
        self._batch = Batch(model, nsim=len(seeds), nthread=threads, persistent=self._has_contact)
        self._ctrl = self._batch.bind("ctrl")
        # Live arrays: always of the last call of the batch.
        self._now = Simulation(
            model,
            self._batch.bind("qpos"),
            self._batch.bind("qvel"),
            {name: self._batch.bind(name) for name in task.derived if name != CONTACT_FORCES},
        )
        if self._has_contact:
            self._contact = np.zeros((len(seeds), model.nbody, 6))
            self._now = replace(
                self._now, derived={**self._now.derived, CONTACT_FORCES: self._contact}
            )
            self._data = mujoco.MjData(model)
        self._seconds = model.opt.timestep * task.frame_skip
        self._generators = [np_random(seed)[0] for seed in seeds]
        self._elapsed = np.zeros(len(seeds), dtype=np.int64)
        self._position: FloatArray = np.zeros(len(seeds))
        self._is_real = np.ones(len(seeds), dtype=bool)
        self._steps = 0
        low, high = model.actuator_ctrlrange.astype(np.float32).T
        self.actions = Box(low=low, high=high)
        self.observation = self._reset(np.arange(len(seeds)))
        self.observation_size = self.observation.shape[1]

    def step(self, action: NDArray[Any]) -> Step:
        """Advance every simulation by one control step and reset those that are done.

        Args:
            action: (n, a); rounded to float32, the type of gymnasium's action space.

        Returns:
            What happened.

        Raises:
            InputError: If a simulation fails, or an observation or a term of the reward is not
                finite.
        """
        action = np.asarray(action, dtype=np.float32)
        self._ctrl[...] = action
        self._elapsed += 1
        self._steps += 1
        self._simulate()
        task = self.task
        before, self._position = self._position, task.position(self._now).copy()
        motion = Motion(self._now, (self._position - before) / self._seconds, action)
        final = task.observe(self._now)
        terms = task.reward_terms(motion)
        reward: FloatArray = sum(terms.values(), start=np.zeros(self.num_envs))
        check_finite(self.env_id, self._steps, {"observation": final, **terms})
        terminated = task.is_terminated(motion)
        truncated = self._elapsed >= task.max_episode_steps
        done = terminated | truncated
        self.observation = self._reset(np.flatnonzero(done)) if done.any() else final
        return Step(
            observation=self.observation,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            final_observation=final,
            is_real=self._is_real,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next steps depend on, as tensors and plain values."""
        return {
            "copies": self.num_envs,
            "simulations": torch.from_numpy(self._batch.state.copy()),
            "observation": torch.from_numpy(self.observation.copy()),
            "position": torch.from_numpy(self._position.copy()),
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
        check_copies(state, self.num_envs)
        self._batch.state[...] = state["simulations"].numpy()
        self.observation = state["observation"].numpy().copy()
        self._position = state["position"].numpy().copy()
        self._elapsed[...] = state["elapsed"].numpy()
        self._steps = state["steps"]
        for generator, saved in zip(self._generators, state["generators"], strict=True):
            generator.bit_generator.state = saved

    def _simulate(self) -> None:
        try:
            self._batch.step(nstep=self.task.frame_skip)
        except SimulationError as error:
            raise InputError(
                f"{self.env_id} failed at step {self._steps}: environment {int(error.ids[0])}, "
                f"{error}; lower the learning rate or the largest log-std."
            ) from error
        if self._has_contact:
            # One after the other, on a copy: all that there is after a step of the batch.
            for i in range(self.num_envs):
                self._batch.get_data(i, self._data)
                mujoco.mj_rnePostConstraint(self._now.model, self._data)
                self._contact[i] = self._data.cfrc_ext

    def _reset(self, which: NDArray[np.intp]) -> FloatArray:
        """Start new episodes and return the observations (n, o) of all simulations."""
        ids, now = which.astype(np.int32), self._now
        # Also clears the solver's warm start, which would carry the old episode into the new one.
        self._batch.reset(ids, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        rest, velocities = now.model.qpos0, now.qvel.shape[1]
        for i in which:
            now.qpos[i], now.qvel[i] = self.task.start(self._generators[i], rest, velocities)
        # As gymnasium does: fills the warm start that the first step begins with.
        self._batch.forward(ids)
        self._elapsed[which] = 0
        self._position[which] = self.task.position(now)[which]
        if self._has_contact:
            self._contact[which] = 0.0  # gymnasium computes them after a step only
        return self.task.observe(now)
