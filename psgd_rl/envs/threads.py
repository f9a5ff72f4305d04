"""How many threads step an environment fastest, found by trying."""

import os
import time
from statistics import median

import numpy as np

from psgd_rl.envs.mujoco_env import MujocoEnv
from psgd_rl.envs.tasks.task import Task

SECONDS = 0.2
"""Time that the trial takes; one step of 32 HalfCheetahs takes about one millisecond."""


def usable_processors() -> int:
    """Return the number of processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def fastest_threads(task: Task, num_envs: int) -> int:
    """Try 1, 2, 4, ... threads in turns on environments that are thrown away.

    Args:
        task: The environment.
        num_envs: Copies of it; more threads than that have nothing to do.

    Returns:
        The number whose median step was shortest.
    """
    most = min(usable_processors(), num_envs)
    candidates: list[int] = [2**k for k in range(most.bit_length())]
    if len(candidates) == 1:
        return 1
    envs = [MujocoEnv(task, range(num_envs), threads=count) for count in candidates]
    times: list[list[float]] = [[] for _ in envs]
    generator = np.random.default_rng(0)
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or not times[-1]:
        action = generator.uniform(-1.0, 1.0, (num_envs, envs[0].actions.size))
        for env, taken in zip(envs, times, strict=True):
            start = time.perf_counter()
            env.step(action)
            taken.append(time.perf_counter() - start)
    best = min(range(len(envs)), key=lambda i: median(times[i]))
    return candidates[best]
