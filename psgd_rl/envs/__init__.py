"""Environments, several copies stepped together: MuJoCo's on `mujoco.batch`, all others adapted."""

from psgd_rl.envs.make import check_env_id, make_env
from psgd_rl.envs.vector_env import Step, VectorEnv

__all__ = ["Step", "VectorEnv", "check_env_id", "make_env"]
