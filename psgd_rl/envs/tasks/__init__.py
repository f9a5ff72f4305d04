"""gymnasium's MuJoCo environments as data; one file per family."""

from psgd_rl.envs.tasks.arms import PUSHER, REACHER
from psgd_rl.envs.tasks.bodies import ANT, HUMANOID, HUMANOID_STANDUP
from psgd_rl.envs.tasks.pendulums import INVERTED_DOUBLE_PENDULUM, INVERTED_PENDULUM
from psgd_rl.envs.tasks.runners import HALF_CHEETAH, HOPPER, SWIMMER, WALKER_2D
from psgd_rl.envs.tasks.task import Motion, Simulation, Task

__all__ = ["HALF_CHEETAH", "TASKS", "Motion", "Simulation", "Task"]

TASKS: dict[str, Task] = {
    task.env_id: task
    for task in (
        HALF_CHEETAH,
        WALKER_2D,
        HOPPER,
        ANT,
        SWIMMER,
        HUMANOID,
        HUMANOID_STANDUP,
        REACHER,
        PUSHER,
        INVERTED_PENDULUM,
        INVERTED_DOUBLE_PENDULUM,
    )
}
"""Every environment on `mujoco.batch` by its gymnasium name."""
