"""Tasks: look-up, and the reward as the sum of its terms."""

import numpy as np
import pytest

from psgd_optim.types import InputError
from psgd_rl.tasks import HALF_CHEETAH, TASKS, Motion, find_task


def test_every_task_is_found_by_its_name():
    assert all(find_task(name).env_id == name for name in TASKS)


def test_unknown_environment_names_the_nearest():
    with pytest.raises(InputError, match=r"'HalfCheeta-v5'; did you mean HalfCheetah-v5\?"):
        find_task("HalfCheeta-v5")


def test_cheetah_is_paid_for_speed_and_pays_for_control():
    motion = Motion(
        qpos_before=np.zeros((2, 9)),
        qpos=np.array([[0.5] * 9, [-0.5] * 9]),
        qvel=np.zeros((2, 9)),
        action=np.array([[1.0] * 6, [0.0] * 6], dtype=np.float32),
        seconds=0.05,
    )
    terms = HALF_CHEETAH.reward_terms(motion)
    np.testing.assert_allclose(terms["forward"], [10.0, -10.0])
    np.testing.assert_allclose(terms["control"], [-0.6, 0.0], rtol=1e-6)
    assert terms["control"].dtype == np.float32
    assert not HALF_CHEETAH.is_terminated(motion).any()


def test_cheetah_does_not_observe_where_it_is():
    qpos, qvel = np.arange(9.0)[None], np.arange(9.0, 18.0)[None]
    np.testing.assert_array_equal(HALF_CHEETAH.observe(qpos, qvel), np.arange(1.0, 18.0)[None])
