"""Planar bodies that are paid for moving forward: cheetah, walker, hopper, swimmer.

No policy may depend on where its body is, so that is not observed.
"""

from collections.abc import Callable, Mapping

import numpy as np

from psgd_rl.envs.tasks.task import (
    Motion,
    Simulation,
    Task,
    near_rest,
    normal,
    squared,
    x_position,
)
from psgd_rl.types import BoolArray, FloatArray


def _observe(now: Simulation) -> FloatArray:
    return np.concatenate((now.qpos[:, 1:], now.qvel), axis=1)


def _observe_clipped(now: Simulation) -> FloatArray:
    return np.concatenate((now.qpos[:, 1:], now.qvel.clip(-10, 10)), axis=1)


def _observe_angles(now: Simulation) -> FloatArray:
    """Observe all but both coordinates of the place."""
    return np.concatenate((now.qpos[:, 2:], now.qvel), axis=1)


def _forward(cost: float) -> Callable[[Motion], Mapping[str, FloatArray]]:
    """Forward velocity minus `cost` |action|^2; the cost stays float32, as gymnasium has it."""

    def reward_terms(motion: Motion) -> Mapping[str, FloatArray]:
        return {"forward": motion.velocity, "control": -(cost * squared(motion.action))}

    return reward_terms


def _forward_upright(
    is_healthy: Callable[[Motion], BoolArray],
) -> Callable[[Motion], Mapping[str, FloatArray]]:
    """As `_forward`, and 1 for every step in which the body has not fallen."""

    def reward_terms(motion: Motion) -> Mapping[str, FloatArray]:
        return {
            "forward": motion.velocity,
            "survive": is_healthy(motion).astype(np.float64),
            "control": -(1e-3 * squared(motion.action)),
        }

    return reward_terms


def _walker_is_healthy(motion: Motion) -> BoolArray:
    height, angle = motion.now.qpos[:, 1], motion.now.qpos[:, 2]
    return (height > 0.8) & (height < 2.0) & (angle > -1.0) & (angle < 1.0)


def _hopper_is_healthy(motion: Motion) -> BoolArray:
    now = motion.now
    height, angle = now.qpos[:, 1], now.qpos[:, 2]
    state = np.concatenate((now.qpos[:, 2:], now.qvel), axis=1)
    is_bounded: BoolArray = (np.abs(state) < 100.0).all(axis=1)
    return is_bounded & (height > 0.7) & (angle > -0.2) & (angle < 0.2)


HALF_CHEETAH = Task(
    env_id="HalfCheetah-v5",
    xml_file="half_cheetah.xml",
    frame_skip=5,
    start=near_rest(0.1, normal),
    observe=_observe,
    reward_terms=_forward(0.1),
    position=x_position,
)

WALKER_2D = Task(
    env_id="Walker2d-v5",
    xml_file="walker2d_v5.xml",
    frame_skip=4,
    start=near_rest(5e-3),
    observe=_observe_clipped,
    reward_terms=_forward_upright(_walker_is_healthy),
    is_terminated=lambda motion: ~_walker_is_healthy(motion),
    position=x_position,
)

HOPPER = Task(
    env_id="Hopper-v5",
    xml_file="hopper.xml",
    frame_skip=4,
    start=near_rest(5e-3),
    observe=_observe_clipped,
    reward_terms=_forward_upright(_hopper_is_healthy),
    is_terminated=lambda motion: ~_hopper_is_healthy(motion),
    position=x_position,
)

SWIMMER = Task(
    env_id="Swimmer-v5",
    xml_file="swimmer.xml",
    frame_skip=4,
    start=near_rest(0.1),
    observe=_observe_angles,
    reward_terms=_forward(1e-4),
    position=x_position,
)
