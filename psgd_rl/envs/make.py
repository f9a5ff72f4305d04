"""Environments by name, the only way in which the rest of the package gets them."""

import importlib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from psgd_optim.tools.names import closest
from psgd_optim.tools.runtime import check_threads
from psgd_optim.types import InputError
from psgd_rl.envs.copies import Copy
from psgd_rl.envs.gymnasium_env import GymnasiumEnv
from psgd_rl.envs.mujoco_env import MujocoEnv
from psgd_rl.envs.tasks import TASKS, Task
from psgd_rl.envs.threads import fastest_threads
from psgd_rl.envs.vector_env import VectorEnv

GymEnv: TypeAlias = "gymnasium.Env[Any, Any]"
GymVectorEnv: TypeAlias = "gymnasium.vector.VectorEnv[Any, Any, Any]"
Entry = Callable[..., Any]


def make_env(env_id: str, seeds: Sequence[int], threads: int = 1) -> VectorEnv:
    """Make one copy of an environment per seed.

    Args:
        env_id: One of `TASKS`, any other name that gymnasium knows, or `"module:name"`: what the
            module registers under that name, or a callable of it that returns an environment or,
            given `num_envs`, a vector environment.
        seeds: Of the copies.
        threads: Threads that step those of `TASKS`, 0 for as many as are fastest here.

    Returns:
        The copies.

    Raises:
        InputError: If there is no such environment, it cannot be made or used, there are no seeds,
            or no such number of threads.
    """
    check_threads("--env-threads", threads, least=0)
    if not seeds:
        raise InputError("Got 0 environments; give 1 or more.")
    found = _find(env_id)
    if isinstance(found, Task):
        chosen = threads or fastest_threads(found, len(seeds))
        return MujocoEnv(found, seeds, threads=chosen)
    try:
        env = _make(env_id, found, len(seeds))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{env_id} cannot be made: {type(error).__name__}: {error}") from error
    return GymnasiumEnv(env_id, env, seeds)


def check_env_id(env_id: str) -> None:
    """Check that there is an environment of a name.

    Args:
        env_id: As `make_env` takes it.

    Raises:
        InputError: If there is none.
    """
    _find(env_id)


def _find(env_id: str) -> Task | EnvSpec | Entry:
    """Look an environment up without making it."""
    if env_id in TASKS:
        return TASKS[env_id]
    module_name, colon, name = env_id.partition(":")
    if not colon:
        return _registered(env_id)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # A script's own folder is searched, the one that it is called from is not.
        raise InputError(
            f"The module {module_name!r} of the environment {env_id!r} cannot be imported: "
            f"{error}; set PYTHONPATH to the module's folder if it is not installed."
        ) from error
    entry = getattr(module, name, None)
    if callable(entry):
        return entry
    if name in gymnasium.registry:
        return gymnasium.registry[name]
    known = [key for key, value in vars(module).items() if callable(value)]
    raise InputError(
        f"The module {module_name!r} has no environment {name!r}, neither a callable nor a "
        f"registered name; {closest(name, known)}"
    )


def _registered(env_id: str) -> EnvSpec:
    if env_id not in gymnasium.registry:
        known = list(dict.fromkeys([*TASKS, *gymnasium.registry]))
        raise InputError(f"There is no environment {env_id!r}; {closest(env_id, known)}")
    return gymnasium.registry[env_id]


def _make(env_id: str, found: EnvSpec | Entry, count: int) -> GymVectorEnv:
    """Make the copies that `_find` leads to."""
    if isinstance(found, EnvSpec):
        if found.entry_point is None:
            return gymnasium.make_vec(
                found, num_envs=count, vectorization_mode="vector_entry_point"
            )
        return _side_by_side([gymnasium.make(found) for _ in range(count)])
    takes_number = "num_envs" in inspect.signature(found).parameters
    entry = partial(found, num_envs=count) if takes_number else found
    made = entry()
    if isinstance(made, gymnasium.Env):
        return _side_by_side([made, *(entry() for _ in range(count - 1))])
    if not isinstance(made, gymnasium.vector.VectorEnv):
        raise InputError(
            f"{env_id} gave a {type(made).__name__}; give a callable that returns a gymnasium.Env "
            "or a gymnasium.vector.VectorEnv."
        )
    if made.num_envs != count:
        raise InputError(
            f"{env_id} gave {made.num_envs} environments for {count}; give it a parameter num_envs."
        )
    return made


def _side_by_side(envs: Sequence[GymEnv]) -> GymVectorEnv:
    """Step environments in turns, each reset within the step that ends its episode."""
    makers = [partial(Copy, env, i) for i, env in enumerate(envs)]
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
