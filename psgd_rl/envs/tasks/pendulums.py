"""Carts that balance a pole, or two poles on each other."""

from collections.abc import Mapping

import numpy as np

from psgd_rl.envs.tasks.task import Motion, Simulation, Task, near_rest, normal
from psgd_rl.types import BoolArray, FloatArray


def _observe_pole(now: Simulation) -> FloatArray:
    return np.concatenate((now.qpos, now.qvel), axis=1)


def _pole_fell(motion: Motion) -> BoolArray:
    now = motion.now
    is_finite = np.isfinite(now.qpos).all(axis=1) & np.isfinite(now.qvel).all(axis=1)
    return ~is_finite | (np.abs(now.qpos[:, 1]) > 0.2)


def _pole_reward(motion: Motion) -> Mapping[str, FloatArray]:
    return {"survive": (~_pole_fell(motion)).astype(np.float64)}


def _square(values: FloatArray) -> FloatArray:
    """Return squares (n,) to the bit of Python's `**` on scalars.

    That is the C library's power, which is off by one bit for one in a thousand numbers.
    """
    return np.array([value**2 for value in values])


def _observe_poles(now: Simulation) -> FloatArray:
    angles = now.qpos[:, 1:]
    friction = now.derived["qfrc_constraint"][:, :1].clip(-10, 10)
    parts = (now.qpos[:, :1], np.sin(angles), np.cos(angles), now.qvel.clip(-10, 10), friction)
    return np.concatenate(parts, axis=1)


def _poles_fell(motion: Motion) -> BoolArray:
    return _tip(motion)[1] <= 1


def _tip(motion: Motion) -> tuple[FloatArray, FloatArray]:
    """Return place and height of the upper pole's end, (n,) each."""
    places = motion.now.derived["site_xpos"][:, 0]
    return places[:, 0], places[:, 2]


def _poles_reward(motion: Motion) -> Mapping[str, FloatArray]:
    place, height = _tip(motion)
    lower, upper = motion.now.qvel[:, 1], motion.now.qvel[:, 2]
    return {
        "survive": 10.0 * ~_poles_fell(motion),
        "distance": -(0.01 * _square(place) + _square(height - 2)),
        "velocity": -(1e-3 * _square(lower) + 5e-3 * _square(upper)),
    }


INVERTED_PENDULUM = Task(
    env_id="InvertedPendulum-v5",
    xml_file="inverted_pendulum.xml",
    frame_skip=2,
    start=near_rest(0.01),
    observe=_observe_pole,
    reward_terms=_pole_reward,
    is_terminated=_pole_fell,
)

INVERTED_DOUBLE_PENDULUM = Task(
    env_id="InvertedDoublePendulum-v5",
    xml_file="inverted_double_pendulum.xml",
    frame_skip=5,
    start=near_rest(0.1, normal),
    observe=_observe_poles,
    reward_terms=_poles_reward,
    is_terminated=_poles_fell,
    derived=("site_xpos", "qfrc_constraint"),
)
