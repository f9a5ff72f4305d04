"""What makes one environment: its model, starts, observation, reward and termination.

The numbers and the order of the operations are gymnasium's, so that the results are equal bit for
bit. Shape legend: `n` environments, `q` positions, `v` velocities, `a` actuators, `o` observations.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mujoco
import numpy as np

from psgd_rl.types import BoolArray, FloatArray


@dataclass(frozen=True)
class Simulation:
    """All simulations at one moment.

    Args:
        model: Their common model.
        qpos: (n, q), positions.
        qvel: (n, v), velocities.
        derived: (n, ...) by field of `MjData`, those that the task names. They belong to the
            beginning of the last simulation step, as in gymnasium.
    """

    model: mujoco.MjModel
    qpos: FloatArray
    qvel: FloatArray
    derived: Mapping[str, FloatArray]


@dataclass(frozen=True)
class Motion:
    """One control step of all environments, as reward and termination see it.

    Args:
        now: The simulations after it.
        velocity: (n,), by how much the task's `position` changed, per second.
        action: (n, a), float32, the action as given.
    """

    now: Simulation
    velocity: FloatArray
    action: FloatArray


Start = Callable[[np.random.Generator, FloatArray, int], tuple[FloatArray, FloatArray]]
"""Draws the state `(q,), (v,)` of a new episode from the model's rest positions (q,) and `v`."""

Draw = Callable[[np.random.Generator, float, int], FloatArray]
"""Draws so many numbers of so large a scale."""


def no_position(now: Simulation) -> FloatArray:
    """Return zeros, for a task that is not paid for moving on."""
    return np.zeros(len(now.qpos))


def never(motion: Motion) -> BoolArray:
    """Return False for every simulation."""
    return np.zeros(len(motion.velocity), dtype=bool)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One environment as data and five functions over all simulations at once.

    Args:
        env_id: gymnasium's name of it.
        xml_file: Its model, a file among gymnasium's assets.
        frame_skip: Simulation steps per control step.
        start: Draws the state of a new episode.
        observe: The observations (n, o).
        reward_terms: Named terms (n,) whose sum, taken in their order, is the reward.
        max_episode_steps: Control steps after which an episode is truncated.
        is_terminated: (n,), whether an episode ended by failing.
        position: (n,), that whose change per second is the `velocity` of a motion.
        derived: Fields of `MjData` that the functions read, beyond positions and velocities.
    """

    env_id: str
    xml_file: str
    frame_skip: int
    start: Start
    observe: Callable[[Simulation], FloatArray]
    reward_terms: Callable[[Motion], Mapping[str, FloatArray]]
    max_episode_steps: int = 1000
    is_terminated: Callable[[Motion], BoolArray] = never
    position: Callable[[Simulation], FloatArray] = no_position
    derived: tuple[str, ...] = ()


def uniform(generator: np.random.Generator, scale: float, size: int) -> FloatArray:
    """Draw numbers between `-scale` and `scale`."""
    return generator.uniform(low=-scale, high=scale, size=size)


def normal(generator: np.random.Generator, scale: float, size: int) -> FloatArray:
    """Draw normal numbers of deviation `scale`."""
    return scale * generator.standard_normal(size)


def near_rest(scale: float, draw_velocities: Draw = uniform) -> Start:
    """Return a start at the rest positions plus uniform noise.

    Args:
        scale: Of the noise of positions and velocities.
        draw_velocities: What theirs is like.

    Returns:
        The start.
    """

    def start(
        generator: np.random.Generator, rest: FloatArray, velocities: int
    ) -> tuple[FloatArray, FloatArray]:
        qpos = rest + uniform(generator, scale, len(rest))
        return qpos, draw_velocities(generator, scale, velocities)

    return start


def x_position(now: Simulation) -> FloatArray:
    """Return the horizontal position (n,), the first coordinate of most models."""
    return now.qpos[:, 0]


def squared(values: FloatArray) -> FloatArray:
    """Return the sums of squares (n,) of arrays (n, ...), in their own type."""
    sums: FloatArray = np.sum(np.square(values).reshape(len(values), -1), axis=1)
    return sums
