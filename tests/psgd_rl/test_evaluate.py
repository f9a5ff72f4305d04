"""Evaluation from a checkpoint file alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from psgd_optim.tools.checkpoint import write_checkpoint
from psgd_optim.types import InputError
from psgd_rl.agent import Agent
from psgd_rl.config import FIRST_EVALUATION_SEED, NetworkConfig
from psgd_rl.envs.mujoco_env import MujocoEnv
from psgd_rl.envs.tasks import HALF_CHEETAH, TASKS
from psgd_rl.evaluate import KIND, evaluate, evaluate_checkpoint, evaluate_run


@pytest.fixture
def agent() -> Agent:
    generator = torch.Generator().manual_seed(0)
    made = Agent.build(HALF_CHEETAH.env_id, (17, 8, 6), NetworkConfig(), generator)
    with torch.no_grad():
        made.actor.layers[-1].weight.mul_(100)
    made.moments.update(np.random.default_rng(0).normal(0, 2, (50, 17)))
    return made


@pytest.fixture
def checkpoint(agent, tmp_path):
    path = tmp_path / "checkpoint" / "last.pt"
    write_checkpoint(path, KIND, {"agent": agent.state_dict(), "eval_episodes": 2})
    return path


def test_equals_a_plain_loop(agent):
    got = evaluate(agent, 2)
    env = MujocoEnv(HALF_CHEETAH, [FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + 1])
    policy = agent.acting_policy()
    expected = np.zeros(2)
    for _ in range(1000):
        action = agent.best_action(policy, env.observation)
        expected += env.step(np.clip(action, -1, 1)).reward
    np.testing.assert_array_equal(got.returns, expected)
    assert got.lengths.tolist() == [1000, 1000]
    assert got.return_mean == expected.mean()
    assert got.return_std == expected.std()


def test_episode_without_an_end_is_refused(agent, monkeypatch):
    monkeypatch.setattr("psgd_rl.evaluate.LONGEST_EPISODE", 30)
    with pytest.raises(InputError, match=r"not ended after 30 steps; give .*TimeLimit"):
        evaluate(agent, 2)


def test_counts_one_episode_per_seed_however_long_the_others_are(agent, monkeypatch):
    def is_tilted(motion):
        return np.abs(motion.now.qpos[:, 2]) > 0.15

    task = replace(HALF_CHEETAH, is_terminated=is_tilted, max_episode_steps=40)
    monkeypatch.setitem(TASKS, task.env_id, task)
    together = evaluate(agent, 6)
    assert len(set(together.lengths.tolist())) > 1
    policy = agent.acting_policy()
    for i in range(6):
        env, total, over = MujocoEnv(task, [FIRST_EVALUATION_SEED + i]), 0.0, False
        length = 0
        while not over:
            action = agent.best_action(policy, env.observation)
            step = env.step(np.clip(action, -1, 1))
            total, length = total + step.reward[0], length + 1
            over = bool(step.terminated[0] | step.truncated[0])
        assert together.lengths[i] == length
        # One row and six are summed in another order by the matrix product.
        np.testing.assert_allclose(together.returns[i], total, rtol=1e-3, atol=1e-3)


def test_is_deterministic_and_changes_nothing(agent):
    before = agent.moments.mean.copy()
    first, second = evaluate(agent, 2), evaluate(agent, 2, threads=2)
    np.testing.assert_array_equal(first.returns, second.returns)
    np.testing.assert_array_equal(agent.moments.mean, before)
    assert agent.moments.count == 50


def test_one_file_is_enough(agent, checkpoint):
    expected = evaluate(agent, 2).return_mean
    assert evaluate_checkpoint(checkpoint).return_mean == expected
    assert evaluate_run(checkpoint.parent.parent).return_mean == expected
    assert evaluate_run(checkpoint).return_mean == expected
    assert len(evaluate_run(checkpoint, 3).returns) == 3


def test_refuses_what_it_cannot_use(agent, checkpoint, tmp_path):
    write_checkpoint(tmp_path / "lm.pt", "psgd_lm", {})
    small = Agent.build(agent.env_id, (5, 8, 6), NetworkConfig(), torch.Generator())
    content = {"agent": small.state_dict(), "eval_episodes": 1}
    write_checkpoint(tmp_path / "spaces.pt", KIND, content)
    with pytest.raises(InputError, match="There is no checkpoint"):
        evaluate_run(tmp_path / "nothing")
    with pytest.raises(InputError, match="checkpoint of 'psgd_lm'"):
        evaluate_run(tmp_path / "lm.pt")
    with pytest.raises(InputError, match="takes 5 observations"):
        evaluate_run(tmp_path / "spaces.pt")
    with pytest.raises(InputError, match="0 evaluation episodes; give 1 or more"):
        evaluate_run(checkpoint, 0)
