"""Tasks: their names, and rewards as the sums of their terms."""

import gymnasium
import numpy as np
import pytest

from psgd_rl.envs.mujoco_env import load_model
from psgd_rl.envs.tasks import HALF_CHEETAH, TASKS, Motion, Simulation


@pytest.mark.parametrize("env_id", TASKS)
def test_every_task_is_gymnasiums_of_that_name(env_id):
    assert TASKS[env_id].env_id == env_id
    assert TASKS[env_id].max_episode_steps == gymnasium.spec(env_id).max_episode_steps


@pytest.fixture
def cheetahs() -> Simulation:
    model = load_model(HALF_CHEETAH.xml_file)
    return Simulation(model, np.arange(18.0).reshape(2, 9), np.ones((2, 9)), {})


def test_cheetah_is_paid_for_speed_and_pays_for_control(cheetahs):
    action = np.array([[1.0] * 6, [0.0] * 6], dtype=np.float32)
    motion = Motion(cheetahs, np.array([10.0, -10.0]), action)
    terms = HALF_CHEETAH.reward_terms(motion)
    np.testing.assert_array_equal(terms["forward"], [10.0, -10.0])
    np.testing.assert_allclose(terms["control"], [-0.6, 0.0], rtol=1e-6)
    assert terms["control"].dtype == np.float32
    assert not HALF_CHEETAH.is_terminated(motion).any()


def test_cheetah_does_not_observe_where_it_is(cheetahs):
    expected = [[*range(1, 9), *[1] * 9], [*range(10, 18), *[1] * 9]]
    np.testing.assert_array_equal(HALF_CHEETAH.observe(cheetahs), expected)
    np.testing.assert_array_equal(HALF_CHEETAH.position(cheetahs), [0.0, 9.0])
