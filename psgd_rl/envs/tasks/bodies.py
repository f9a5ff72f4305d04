"""Bodies that feel and pay for contact: an ant, a humanoid that walks, one that rises.

Row 0 of a field by body is the world's, which is not observed. A contact force is zero at the
start of an episode, where gymnasium has not computed it yet.
"""

from collections.abc import Mapping

import numpy as np

from psgd_rl.envs.tasks.task import Motion, Simulation, Task, near_rest, normal, squared
from psgd_rl.types import BoolArray, FloatArray


def _flat(values: FloatArray) -> FloatArray:
    return values.reshape(len(values), -1)


def _ant_contact(now: Simulation) -> FloatArray:
    """Return the contact forces (n, body, 6), each component in [-1, 1]."""
    return now.derived["cfrc_ext"].clip(-1.0, 1.0)


def _observe_ant(now: Simulation) -> FloatArray:
    contact = _flat(_ant_contact(now)[:, 1:])
    return np.concatenate((now.qpos[:, 2:], now.qvel, contact), axis=1)


def _ant_position(now: Simulation) -> FloatArray:
    return now.derived["xpos"][:, 1, 0]  # the torso's


def _ant_is_healthy(motion: Motion) -> BoolArray:
    now = motion.now
    is_finite = np.isfinite(now.qpos).all(axis=1) & np.isfinite(now.qvel).all(axis=1)
    return is_finite & (now.qpos[:, 2] >= 0.2) & (now.qpos[:, 2] <= 1.0)


def _ant_reward(motion: Motion) -> Mapping[str, FloatArray]:
    # One term, because gymnasium adds the costs to each other first.
    costs = 0.5 * squared(motion.action) + 5e-4 * squared(_ant_contact(motion.now))
    return {
        "forward": motion.velocity,
        "survive": _ant_is_healthy(motion).astype(np.float64),
        "control and contact": -costs,
    }


def _observe_humanoid(now: Simulation) -> FloatArray:
    bodies = [_flat(now.derived[name][:, 1:]) for name in ("cinert", "cvel")]
    forces = now.derived["qfrc_actuator"][:, 6:]  # the root's six joints are not actuated
    contact = _flat(now.derived["cfrc_ext"][:, 1:])
    return np.concatenate((now.qpos[:, 2:], now.qvel, *bodies, forces, contact), axis=1)


def _mass_centre(now: Simulation) -> FloatArray:
    mass = now.model.body_mass
    # One by one: summed over all at once, the last bits differ.
    moment = [np.einsum("b,bj->j", mass, places) for places in now.derived["xipos"]]
    centre: FloatArray = np.stack(moment)[:, 0] / mass.sum()
    return centre


def _humanoid_is_healthy(motion: Motion) -> BoolArray:
    height = motion.now.qpos[:, 2]
    return (height > 1.0) & (height < 2.0)


def _control_cost(motion: Motion) -> FloatArray:
    # In float64, as gymnasium takes the humanoids' controls from the simulation.
    return 0.1 * squared(motion.action.astype(np.float64))


def _contact_cost(motion: Motion) -> FloatArray:
    return (5e-7 * squared(motion.now.derived["cfrc_ext"])).clip(-np.inf, 10.0)


def _humanoid_reward(motion: Motion) -> Mapping[str, FloatArray]:
    return {
        "forward": 1.25 * motion.velocity,
        "survive": 5.0 * _humanoid_is_healthy(motion),
        "control and contact": -(_control_cost(motion) + _contact_cost(motion)),
    }


def _rise_reward(motion: Motion) -> Mapping[str, FloatArray]:
    return {
        "height": motion.now.qpos[:, 2] / motion.now.model.opt.timestep,
        "control": -_control_cost(motion),
        "contact": -_contact_cost(motion),
        "survive": np.ones(len(motion.velocity)),
    }


ANT = Task(
    env_id="Ant-v5",
    xml_file="ant.xml",
    frame_skip=5,
    start=near_rest(0.1, normal),
    observe=_observe_ant,
    reward_terms=_ant_reward,
    is_terminated=lambda motion: ~_ant_is_healthy(motion),
    position=_ant_position,
    derived=("xpos", "cfrc_ext"),
)

HUMANOID = Task(
    env_id="Humanoid-v5",
    xml_file="humanoid.xml",
    frame_skip=5,
    start=near_rest(1e-2),
    observe=_observe_humanoid,
    reward_terms=_humanoid_reward,
    is_terminated=lambda motion: ~_humanoid_is_healthy(motion),
    position=_mass_centre,
    derived=("xipos", "cinert", "cvel", "qfrc_actuator", "cfrc_ext"),
)

HUMANOID_STANDUP = Task(
    env_id="HumanoidStandup-v5",
    xml_file="humanoidstandup.xml",
    frame_skip=5,
    start=near_rest(1e-2),
    observe=_observe_humanoid,
    reward_terms=_rise_reward,
    derived=("cinert", "cvel", "qfrc_actuator", "cfrc_ext"),
)
