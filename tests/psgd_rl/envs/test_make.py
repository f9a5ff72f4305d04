"""Environments by name, and names that lead nowhere."""

import numpy as np
import pytest

from psgd_optim.types import InputError
from psgd_rl.envs import check_env_id, make_env
from psgd_rl.envs.gymnasium_env import GymnasiumEnv
from psgd_rl.envs.mujoco_env import MujocoEnv
from psgd_rl.spaces import Box
from tests.psgd_rl.envs.counting import Failing

COUNTING = Failing.__module__


def test_the_tasks_run_on_the_batch_and_others_are_adapted():
    assert isinstance(make_env("Hopper-v5", [1, 2]), MujocoEnv)
    env = make_env("Pendulum-v1", [1, 2])
    assert isinstance(env, GymnasiumEnv)
    assert isinstance(env.actions, Box)
    for _ in range(201):
        step = env.step(np.zeros((2, 1), dtype=np.float32))
        assert np.array_equal(step.truncated, [_ == 199] * 2)
    assert (env.num_envs, env.observation_size) == (2, 3)


@pytest.mark.parametrize("name", ["Counting", "next_step"])
def test_a_callable_gives_environments_or_a_vector_environment(name):
    env = make_env(f"{COUNTING}:{name}", [1, 2, 3])
    assert (env.num_envs, env.observation.shape) == (3, (3, 2))
    steps = [env.step(np.zeros(3, dtype=np.int64)) for _ in range(8)]
    assert all(step.is_real.all() for step in steps) == (name == "Counting")


def test_gymnasiums_own_form_imports_the_module_that_registers():
    assert make_env("gymnasium.envs:CartPole-v1", [1]).observation_size == 4


@pytest.mark.parametrize(
    ("env_id", "match"),
    [
        ("HalfCheeta-v5", r"no environment 'HalfCheeta-v5'; did you mean HalfCheetah-v5\?"),
        ("CartPol-v1", r"no environment 'CartPol-v1'; did you mean CartPole-v1\?"),
        (
            "no_such.module:Env",
            "module 'no_such.module' .* cannot be imported: No module named .*; set PYTHONPATH to",
        ),
        (f"{COUNTING}:Countin", r"has no environment 'Countin', .* mean Counting\?"),
        (f"{COUNTING}:not_callable", "has no environment 'not_callable'"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(env_id, match):
    with pytest.raises(InputError, match=match):
        check_env_id(env_id)


@pytest.mark.parametrize(
    ("env_id", "match"),
    [
        (f"{COUNTING}:a_number", "gave a int; give a callable that returns a gymnasium.Env"),
        (f"{COUNTING}:always_two", "gave 2 environments for 3; give it a parameter num_envs"),
        (f"{COUNTING}:side_by_side", "cannot be made: TypeError: .*'mode'"),
    ],
)
def test_what_gives_no_such_environments_is_refused(env_id, match):
    with pytest.raises(InputError, match=match):
        make_env(env_id, [1, 2, 3])


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "CartPole-v1"])
def test_no_environments_and_no_such_threads_are_refused(env_id):
    with pytest.raises(InputError, match="0 environments; give 1 or more"):
        make_env(env_id, [])
    with pytest.raises(InputError, match="--env-threads -1; give 0 to 256"):
        make_env(env_id, [1], -1)


def test_a_failing_environment_is_named_with_its_step():
    Failing.made = 0
    env = make_env(f"{COUNTING}:Failing", [1, 2, 3])
    with pytest.raises(
        InputError, match="step 3, environment 1: ZeroDivisionError: no such state"
    ) as caught:
        for _ in range(5):
            env.step(np.zeros(3, dtype=np.int64))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
