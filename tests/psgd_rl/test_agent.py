"""An agent is rebuilt from its state alone."""

import numpy as np
import pytest
import torch

from psgd_optim.types import InputError
from psgd_rl.agent import Agent
from psgd_rl.config import NetworkConfig
from psgd_rl.envs.mujoco_env import MujocoEnv
from psgd_rl.envs.tasks import HALF_CHEETAH


def make_agent(sizes=(17, 8, 6)) -> Agent:
    return Agent.build(
        HALF_CHEETAH.env_id, sizes, NetworkConfig(), torch.Generator().manual_seed(3)
    )


def test_restored_agent_acts_alike(tmp_path):
    agent = make_agent()
    observation = np.random.default_rng(0).normal(2, 5, (4, 17))
    agent.moments.update(observation)
    torch.save(agent.state_dict(), tmp_path / "agent")
    restored = Agent.restore(torch.load(tmp_path / "agent", weights_only=True))
    actions = [a.best_action(a.acting_policy(), observation) for a in (agent, restored)]
    np.testing.assert_array_equal(*actions)
    assert np.abs(actions[0]).max() > 0
    assert restored.sizes == agent.sizes


@pytest.mark.parametrize("sizes", [(16, 8, 6), (17, 8, 5)])
def test_agent_of_other_spaces_is_refused(sizes):
    env = MujocoEnv(HALF_CHEETAH, [1])
    make_agent().check_spaces(env)
    with pytest.raises(InputError, match=f"takes {sizes[0]} .* gives {sizes[-1]} .* has 17 and 6"):
        make_agent(sizes).check_spaces(env)
