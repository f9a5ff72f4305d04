"""The agents that ship are as good as their provenance says."""

from pathlib import Path

import pytest

from psgd_optim.tools.run_folder import read_json
from psgd_rl.evaluate import AGENT, PROVENANCE, evaluate_run

AGENTS = sorted((Path(__file__).parents[2] / "checkpoints").glob(f"*/{AGENT}"))


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS, ids=lambda path: path.parent.name)
def test_shipped_agent_returns_what_it_states(agent):
    stated = read_json(agent.parent / PROVENANCE)["evaluation"]
    evaluation = evaluate_run(agent.parent)
    assert len(evaluation.returns) == stated["episodes"]
    low, high = stated["interval"]
    assert low <= evaluation.return_mean <= high
    assert agent.stat().st_size < 1e6


def test_agents_ship():
    assert {path.parent.name for path in AGENTS} == {"halfcheetah", "walker2d"}
