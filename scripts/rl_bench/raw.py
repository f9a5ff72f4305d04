"""Vector environments alone, under random actions: ours, gymnasium's two, envpool's."""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from numpy.typing import NDArray

from psgd_optim.tools.names import closest
from psgd_optim.tools.runtime import check_threads
from psgd_optim.types import InputError
from psgd_rl.envs import make_env
from rl_bench.report import write


@dataclass(frozen=True, kw_only=True)
class RawConfig:
    """Time the steps of vector environments, all of them in turns; resets are steps too."""

    env_id: str = "HalfCheetah-v5"
    """The environment, by gymnasium's name."""
    num_envs: int = 32
    """Copies."""
    threads: int = 1
    """Threads of ours and of envpool's; gymnasium's sync has one, its async a process per copy."""
    steps: int = 1000
    """Steps of all copies per sample: an episode of most environments, so that resets count."""
    repeats: int = 7
    """Samples of every contender."""
    contenders: tuple[str, ...] = ("psgd_rl", "sync", "async", "envpool")
    """Who runs, the measure of the others first."""
    out: Path = Path("runs/bench_rl_raw")
    """Figures are written to OUT.json and OUT.md."""

    def __post_init__(self) -> None:
        check_threads("--threads", self.threads)
        for name in ("num_envs", "steps", "repeats"):
            if getattr(self, name) < 1:
                raise InputError(f"Got {name} = {getattr(self, name)}; give 1 or more.")
        for name in self.contenders:
            if name not in MAKERS:
                raise InputError(f"There is no contender {name!r}; {closest(name, list(MAKERS))}")


@dataclass(frozen=True)
class Contender:
    """A vector environment that was begun.

    Args:
        step: Takes actions (n, a) float32.
        close: Ends its processes.
    """

    step: Callable[[NDArray[np.float32]], object]
    close: Callable[[], object] = lambda: None


def _ours(config: RawConfig) -> Contender:
    return Contender(make_env(config.env_id, range(config.num_envs), config.threads).step)


def _gymnasium(kind: Callable[..., Any], config: RawConfig) -> Contender:
    env = kind([lambda: gymnasium.make(config.env_id)] * config.num_envs)
    env.reset(seed=0)
    return Contender(env.step, env.close)


def _envpool(config: RawConfig) -> Contender:
    try:
        envpool = importlib.import_module("envpool")
    except ImportError as error:
        raise InputError(
            f"envpool cannot be imported ({error}); install it or leave it out of --contenders."
        ) from error
    env = envpool.make_gymnasium(
        config.env_id, num_envs=config.num_envs, num_threads=config.threads, seed=0
    )
    env.reset()
    dtype = env.action_space.dtype
    return Contender(lambda action: env.step(action.astype(dtype)), env.close)


MAKERS: dict[str, Callable[[RawConfig], Contender]] = {
    "psgd_rl": _ours,
    "sync": lambda config: _gymnasium(SyncVectorEnv, config),
    "async": lambda config: _gymnasium(AsyncVectorEnv, config),
    "envpool": _envpool,
}
"""Every contender by its name."""


def run_raw(config: RawConfig, command: str, tell: Callable[[str], None]) -> str:
    """Measure, and write the figures.

    Args:
        config: What to measure.
        command: What was typed, for the record.
        tell: Takes a line whenever a round is done.

    Returns:
        The table as Markdown.
    """
    space = gymnasium.make(config.env_id).action_space
    if not isinstance(space, gymnasium.spaces.Box):
        raise InputError(f"{config.env_id} has actions in {space}; give one with a Box.")
    running = {name: MAKERS[name](config) for name in config.contenders}
    speeds: dict[str, list[float]] = {name: [] for name in running}
    try:
        for number in range(config.repeats + 1):  # the first round is for warmth
            generator = np.random.default_rng(number)
            shape = (config.steps, config.num_envs, *space.shape)
            actions = generator.uniform(space.low, space.high, shape).astype(np.float32)
            for name, contender in running.items():
                start = time.perf_counter()
                for action in actions:
                    contender.step(action)
                taken = time.perf_counter() - start
                if number:
                    speeds[name].append(config.steps * config.num_envs / taken)
            tell(f"round {number} of {config.repeats}")
    finally:
        for contender in running.values():
            contender.close()
    settings = {
        "env_id": config.env_id,
        "num_envs": config.num_envs,
        "threads": config.threads,
        "steps": config.steps,
    }
    return write(config.out, command, settings, speeds)
