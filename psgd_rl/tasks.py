"""What makes one environment: its model, reset noise, observation, reward and termination.

The numbers and the order of the operations are gymnasium's, so that the results are equal bit for
bit. Shape legend: `n` environments, `q` positions, `v` velocities, `a` actuators, `o` observations.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psgd_optim.tools.names import closest
from psgd_optim.types import InputError

FloatArray = NDArray[np.floating[Any]]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Motion:
    """One control step of all environments, as reward and termination see it.

    Args:
        qpos_before: (n, q), positions before the step.
        qpos: (n, q), positions after it.
        qvel: (n, v), velocities after it.
        action: (n, a), float32, the action as given.
        seconds: Simulated time of one control step.
    """

    qpos_before: FloatArray
    qpos: FloatArray
    qvel: FloatArray
    action: FloatArray
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Task:
    """One environment as data and four functions over all simulations at once.

    Args:
        env_id: gymnasium's name of it.
        xml_file: Its model, a file among gymnasium's assets.
        frame_skip: Simulation steps per control step.
        max_episode_steps: Control steps after which an episode is truncated.
        noise: Draws the deviation `(q,), (v,)` from the model's rest state at a reset.
        observe: Turns positions (n, q) and velocities (n, v) into observations (n, o).
        reward_terms: Named terms (n,) whose sum, taken in their order, is the reward.
        is_terminated: (n,), whether an episode ended by failing.
    """

    env_id: str
    xml_file: str
    frame_skip: int
    max_episode_steps: int
    noise: Callable[[np.random.Generator, int, int], tuple[FloatArray, FloatArray]]
    observe: Callable[[FloatArray, FloatArray], FloatArray]
    reward_terms: Callable[[Motion], Mapping[str, FloatArray]]
    is_terminated: Callable[[Motion], BoolArray]


def _never(motion: Motion) -> BoolArray:
    return np.zeros(len(motion.qpos), dtype=bool)


def _without_x(qpos: FloatArray, qvel: FloatArray) -> FloatArray:
    """Observe everything but the horizontal position, which no policy may depend on."""
    return np.concatenate((qpos[:, 1:], qvel), axis=1)


def _cheetah_noise(
    generator: np.random.Generator, positions: int, velocities: int
) -> tuple[FloatArray, FloatArray]:
    return (
        generator.uniform(low=-0.1, high=0.1, size=positions),
        0.1 * generator.standard_normal(velocities),
    )


def _cheetah_reward(motion: Motion) -> Mapping[str, FloatArray]:
    """Forward velocity minus 0.1 |action|^2; the cost stays float32, as gymnasium has it."""
    velocity = (motion.qpos[:, 0] - motion.qpos_before[:, 0]) / motion.seconds
    cost = 0.1 * np.sum(np.square(motion.action), axis=1)
    return {"forward": velocity, "control": -cost}


HALF_CHEETAH = Task(
    env_id="HalfCheetah-v5",
    xml_file="half_cheetah.xml",
    frame_skip=5,
    max_episode_steps=1000,
    noise=_cheetah_noise,
    observe=_without_x,
    reward_terms=_cheetah_reward,
    is_terminated=_never,
)


def _walker_noise(
    generator: np.random.Generator, positions: int, velocities: int
) -> tuple[FloatArray, FloatArray]:
    return (
        generator.uniform(low=-5e-3, high=5e-3, size=positions),
        generator.uniform(low=-5e-3, high=5e-3, size=velocities),
    )


def _without_x_clipped(qpos: FloatArray, qvel: FloatArray) -> FloatArray:
    """Observe as `_without_x`, with velocities in [-10, 10]."""
    return _without_x(qpos, qvel.clip(-10, 10))


def _walker_is_healthy(motion: Motion) -> BoolArray:
    """Whether the torso is high and upright enough to go on walking."""
    height, angle = motion.qpos[:, 1], motion.qpos[:, 2]
    return (height > 0.8) & (height < 2.0) & (angle > -1.0) & (angle < 1.0)


def _walker_reward(motion: Motion) -> Mapping[str, FloatArray]:
    """Forward velocity plus 1 while healthy minus 0.001 |action|^2, the cost in float32."""
    velocity = (motion.qpos[:, 0] - motion.qpos_before[:, 0]) / motion.seconds
    cost = 1e-3 * np.sum(np.square(motion.action), axis=1)
    return {
        "forward": velocity,
        "survive": _walker_is_healthy(motion).astype(np.float64),
        "control": -cost,
    }


WALKER_2D = Task(
    env_id="Walker2d-v5",
    xml_file="walker2d_v5.xml",
    frame_skip=4,
    max_episode_steps=1000,
    noise=_walker_noise,
    observe=_without_x_clipped,
    reward_terms=_walker_reward,
    is_terminated=lambda motion: ~_walker_is_healthy(motion),
)

TASKS: dict[str, Task] = {task.env_id: task for task in (HALF_CHEETAH, WALKER_2D)}
"""Every environment by its gymnasium name."""


def find_task(env_id: str) -> Task:
    """Look an environment up.

    Args:
        env_id: gymnasium's name.

    Returns:
        Its task.

    Raises:
        InputError: If there is none of that name.
    """
    if env_id not in TASKS:
        raise InputError(f"There is no environment {env_id!r}; {closest(env_id, list(TASKS))}")
    return TASKS[env_id]
