"""An exported agent gives the stated return again, and a folder is written whole or not at all."""

import json

import pytest
import torch

from psgd_optim.tools.checkpoint import write_checkpoint
from psgd_optim.tools.choices import config_to_dict
from psgd_optim.tools.run_folder import LAST, write_json
from psgd_optim.types import InputError
from psgd_rl import exported
from psgd_rl.agent import Agent
from psgd_rl.evaluate import KIND, evaluate_run
from psgd_rl.exported import Statement, export_agent, read_statement
from psgd_rl.presets import PRESETS

CONFIG = PRESETS["halfcheetah"]

pytestmark = pytest.mark.usefixtures("short_episodes")


@pytest.fixture
def run(tmp_path):
    """A run's folder with an agent of the preset's size, as training writes it."""
    generator = torch.Generator().manual_seed(0)
    agent = Agent.build(CONFIG.env_id, (17, 64, 64, 6), CONFIG.network, generator)
    config = config_to_dict(CONFIG)
    content = {"config": config, "agent": agent.state_dict(), "eval_episodes": 3, "updater": {}}
    write_checkpoint(tmp_path / "run" / LAST, KIND, content)
    write_json(tmp_path / "run" / "config.json", {"kind": KIND, **config})
    return tmp_path / "run"


@pytest.fixture
def folder(run, tmp_path):
    path = tmp_path / "agents" / "cheetah"
    export_agent(run, path, evaluate_run(run), command="python x.py")
    return path


def test_export_gives_the_stated_return_again(run, folder):
    assert [path.name for path in folder.parent.iterdir()] == ["cheetah"]
    assert {path.name for path in folder.iterdir()} == {"agent.pt", "provenance.json"}
    assert (folder / "agent.pt").stat().st_size < 1e6
    content = torch.load(folder / "agent.pt", weights_only=True)["content"]
    assert content.keys() == {"agent", "eval_episodes"}
    evaluation, statement = evaluate_run(folder), read_statement(folder)
    assert evaluation.returns.tolist() == evaluate_run(run).returns.tolist()
    mean, error = evaluation.return_mean, evaluation.returns.std(ddof=1) / 3**0.5
    assert statement.mean == mean
    assert statement.low == pytest.approx(mean - 1.96 * error)
    assert statement.high == pytest.approx(mean + 1.96 * error)
    assert "over 3 episodes" in statement.verdict(mean)


def test_provenance_tells_where_it_is_from(folder):
    stored = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    assert (stored["command"], stored["env_id"]) == ("python x.py", CONFIG.env_id)
    assert (stored["seed"], stored["total_steps"]) == (CONFIG.seed, CONFIG.total_steps)
    assert stored["versions"].keys() >= {"python", "torch", "numpy", "gymnasium", "mujoco"}
    assert {"episodes", "return_mean", "return_std"} <= stored["evaluation"].keys()
    assert stored["config"]["ppo"]["gamma"] == CONFIG.ppo.gamma
    assert "run_dir" not in stored["config"]
    assert stored["summary"] is None


def test_verdict_is_clear():
    statement = Statement(mean=5.0, low=4.0, high=6.0, episodes=2)
    assert statement.verdict(6.0).endswith("is within it")
    assert statement.verdict(6.1).endswith("is OUTSIDE it")
    assert statement.verdict(3.9).endswith("is OUTSIDE it")


def test_folder_is_written_whole_or_not_at_all(run, tmp_path, monkeypatch):
    def full(path, value):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(exported, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        export_agent(run, tmp_path / "agents" / "new", evaluate_run(run), command="")
    assert not list((tmp_path / "agents").iterdir())


def test_other_things_are_left_alone(run, folder, tmp_path):
    evaluation = evaluate_run(run)
    empty = tmp_path / "empty"
    empty.mkdir()
    for path in (folder, run, run / "config.json"):
        with pytest.raises(InputError, match="is no empty folder; give another --export"):
            export_agent(run, path, evaluation, command="")
    with pytest.raises(InputError, match="cannot be made"):
        export_agent(run, run / "config.json" / "new", evaluation, command="")
    with pytest.raises(InputError, match="is an exported agent; copy the folder"):
        export_agent(folder, empty, evaluation, command="")
    with pytest.raises(InputError, match=r"There is no checkpoint .*best.pt"):
        export_agent(run, empty, evaluation, best=True, command="")
    with pytest.raises(InputError, match=r"no .*last.pt/config.json"):
        export_agent(run / LAST, empty, evaluation, command="")
    with pytest.raises(InputError, match="no interval; give 2 or more"):
        export_agent(run, empty, evaluate_run(run, 1), command="")
    assert not list(empty.iterdir())
    export_agent(run, empty, evaluation, command="")
    assert read_statement(empty) == read_statement(folder)
    assert read_statement(run) is None


def test_damage_is_told(folder):
    provenance, agent = folder / "provenance.json", folder / "agent.pt"
    with pytest.raises(InputError, match="has one checkpoint; leave out --best"):
        evaluate_run(folder, best=True)
    agent.write_bytes(agent.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"agent.pt is damaged"):
        evaluate_run(folder)
    agent.unlink()
    with pytest.raises(InputError, match=r"There is no checkpoint .*agent.pt"):
        evaluate_run(folder)
    for text in ("{}", '{"evaluation": 3}', '{"evaluation": {"interval": [1], "return_mean": 1}}'):
        provenance.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match="states no return with its interval; restore it"):
            read_statement(folder)
    provenance.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="not readable JSON"):
        read_statement(folder)
    agent.touch()
    provenance.unlink()
    with pytest.raises(InputError, match=r"There is no .*provenance.json"):
        read_statement(folder)
