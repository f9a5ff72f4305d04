"""Arms with a goal: one that reaches a point, one that pushes a cylinder to a place."""

from collections.abc import Mapping

import numpy as np

from psgd_rl.envs.tasks.task import Motion, Simulation, Task, squared, uniform
from psgd_rl.types import FloatArray


def _place(now: Simulation, body: str) -> FloatArray:
    """Return where a body is, (n, 3)."""
    return now.derived["xpos"][:, now.model.body(body).id]


def _distance(vectors: FloatArray) -> FloatArray:
    """Return the lengths (n,) of vectors (n, 3), to the bit those of `np.linalg.norm`."""
    length: FloatArray = np.sqrt(np.vecdot(vectors, vectors))
    return length


def _start_reacher(
    generator: np.random.Generator, rest: FloatArray, velocities: int
) -> tuple[FloatArray, FloatArray]:
    qpos = uniform(generator, 0.1, len(rest)) + rest
    goal = uniform(generator, 0.2, 2)
    while np.linalg.norm(goal) >= 0.2:  # uniform in the disc that the arm can reach
        goal = uniform(generator, 0.2, 2)
    qpos[-2:] = goal
    qvel = uniform(generator, 0.005, velocities)
    qvel[-2:] = 0
    return qpos, qvel


def _to_target(now: Simulation) -> FloatArray:
    return _place(now, "fingertip") - _place(now, "target")


def _observe_reacher(now: Simulation) -> FloatArray:
    angles = now.qpos[:, :2]
    parts = (np.cos(angles), np.sin(angles), now.qpos[:, 2:], now.qvel[:, :2])
    return np.concatenate((*parts, _to_target(now)[:, :2]), axis=1)


def _reacher_reward(motion: Motion) -> Mapping[str, FloatArray]:
    return {"distance": -_distance(_to_target(motion.now)), "control": -squared(motion.action)}


def _start_pusher(
    generator: np.random.Generator, rest: FloatArray, velocities: int
) -> tuple[FloatArray, FloatArray]:
    def draw() -> FloatArray:
        return generator.uniform(low=[-0.3, -0.2], high=[0.0, 0.2])

    cylinder = draw()
    while np.linalg.norm(cylinder) <= 0.17:  # never at its goal from the beginning
        cylinder = draw()
    qvel = uniform(generator, 0.005, velocities)
    qvel[-4:] = 0
    return np.concatenate((rest[:-4], cylinder, (0.0, 0.0))), qvel


def _observe_pusher(now: Simulation) -> FloatArray:
    places = [_place(now, body) for body in ("tips_arm", "object", "goal")]
    return np.concatenate((now.qpos[:, :7], now.qvel[:, :7], *places), axis=1)


def _pusher_reward(motion: Motion) -> Mapping[str, FloatArray]:
    thing = _place(motion.now, "object")
    return {
        "distance": -_distance(thing - _place(motion.now, "goal")),
        "control": -squared(motion.action) * 0.1,
        "near": -_distance(thing - _place(motion.now, "tips_arm")) * 0.5,
    }


REACHER = Task(
    env_id="Reacher-v5",
    xml_file="reacher.xml",
    frame_skip=2,
    max_episode_steps=50,
    start=_start_reacher,
    observe=_observe_reacher,
    reward_terms=_reacher_reward,
    derived=("xpos",),
)

PUSHER = Task(
    env_id="Pusher-v5",
    xml_file="pusher_v5.xml",
    frame_skip=5,
    max_episode_steps=100,
    start=_start_pusher,
    observe=_observe_pusher,
    reward_terms=_pusher_reward,
    derived=("xpos",),
)
