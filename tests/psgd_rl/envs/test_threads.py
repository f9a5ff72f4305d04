"""The choice of the number of threads."""

import numpy as np
import pytest

from psgd_rl.envs import make_env, threads
from psgd_rl.envs.tasks import HALF_CHEETAH
from psgd_rl.envs.threads import fastest_threads


class Stepped:
    """Stands in for environments of which 4 threads are fastest, by the clock of `seconds`."""

    now = 0.0

    def __init__(self, task, seeds, *, threads):
        self.seconds = {1: 4.0, 2: 3.0, 4: 1.0, 8: 2.0}[threads] / 100
        self.actions = make_env(task.env_id, [0]).actions

    def step(self, action):
        Stepped.now += self.seconds


@pytest.mark.parametrize(
    ("processors", "num_envs", "expected"), [(8, 8, 4), (8, 3, 2), (3, 8, 2), (1, 8, 1), (8, 1, 1)]
)
def test_the_fastest_of_the_possible_numbers_is_chosen(monkeypatch, processors, num_envs, expected):
    monkeypatch.setattr(threads, "MujocoEnv", Stepped)
    monkeypatch.setattr(threads, "usable_processors", lambda: processors)
    monkeypatch.setattr(threads.time, "perf_counter", lambda: Stepped.now)
    assert fastest_threads(HALF_CHEETAH, num_envs) == expected


def test_the_choice_changes_no_result(monkeypatch):
    monkeypatch.setattr(threads, "SECONDS", 0.0)
    monkeypatch.setattr(threads, "usable_processors", lambda: 2)
    chosen, given = make_env("Hopper-v5", [1, 2, 3], 0), make_env("Hopper-v5", [1, 2, 3], 1)
    assert chosen.threads in (1, 2)
    for _ in range(20):
        action = np.full((3, 3), 0.5)
        one, two = chosen.step(action), given.step(action)
        np.testing.assert_array_equal(one.observation, two.observation)
