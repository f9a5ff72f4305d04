"""Both reinforcement-learning scripts, end to end and in process."""

import json
import os
import signal
import sys
from pathlib import Path

import _cli
import compare
import evaluate_rl
import pytest
import train_rl

from psgd_optim.tools.choices import config_to_dict
from psgd_rl import TUNED
from psgd_rl.update import Updater


def call(script, monkeypatch, capsys, *args):
    """Run a script as a command line would; return its exit code, output and complaint."""
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, args)])
    code = _cli.run(script.main)
    return code, *capsys.readouterr()


@pytest.fixture
def run(monkeypatch, capsys):
    return lambda script, *args: call(script, monkeypatch, capsys, *args)


def train(run, folder, *args):
    return run(train_rl, "smoke", "--total-steps", 256, "--run-dir", folder, *args)


def test_trained_agent_is_evaluated_to_the_same_number(run, tmp_path):
    code, out, _ = train(run, tmp_path / "run")
    assert code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert f"return {summary['return_mean']} " in out
    code, out, _ = run(evaluate_rl, tmp_path / "run")
    assert code == 0
    assert f"return {summary['return_mean']} " in out
    code, other, _ = run(evaluate_rl, tmp_path / "run", "--episodes", 3)
    assert code == 0
    assert other != out


@pytest.mark.usefixtures("short_episodes")
def test_exported_agent_is_held_against_its_statement(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(run, tmp_path / "run")
    line = ("run", "--episodes", 3, f"--export={tmp_path / 'agents' / 'a'}")
    code, out, _ = run(evaluate_rl, *line)
    assert code == 0
    assert "exported: " in out
    told = json.loads((tmp_path / "agents" / "a" / "provenance.json").read_text(encoding="utf-8"))
    assert told["command"] == ("python scripts/evaluate_rl.py run --episodes 3 --export=agents/a")
    assert (
        told["summary"]["return_mean"]
        == json.loads(Path("run/summary.json").read_text())["return_mean"]
    )
    code, again, _ = run(evaluate_rl, "agents/a")
    assert code == 0
    assert again.splitlines()[:2] == out.splitlines()[:2]
    assert "this return is within it" in again
    told["evaluation"]["interval"] = [1e5, 2e5]
    Path("agents/a/provenance.json").write_text(json.dumps(told))
    code, again, _ = run(evaluate_rl, "agents/a")
    assert code == 0
    assert "this return is OUTSIDE it" in again


@pytest.mark.usefixtures("short_episodes")
def test_film_is_of_the_first_episode(run, tmp_path, monkeypatch):
    train(run, tmp_path / "run")
    film = tmp_path / "a.gif"
    filmed = []

    def film_episode(path, env_id, actions):
        filmed.append((path, env_id, len(actions)))
        return 0.5

    monkeypatch.setattr(evaluate_rl, "film_episode", film_episode)
    code, out, _ = run(evaluate_rl, tmp_path / "run", "--episodes", 1, "--video", film)
    assert code == 0
    assert filmed == [(film, "HalfCheetah-v5", 20)]
    assert f"film: {film}, return 0.5\n" in out
    assert "the environment is not repeatable" in out


def test_published_command_has_no_folders_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = [str(tmp_path / "a b"), "--export", "/somewhere/else/c", f"--video={tmp_path}/d.gif"]
    assert _cli.command("x.py", line) == "python scripts/x.py 'a b' --export c --video=d.gif"


def test_default_folder_is_named_after_the_preset(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(train_rl, "smoke", "--total-steps", 128)[0] == 0
    assert (tmp_path / "runs" / "smoke" / "summary.json").is_file()


def test_optimizers_are_chosen_by_name(run, tmp_path):
    code, *_ = train(
        run, tmp_path / "run", "--actor", "adamw", "--critic", "adamw", "--actor.lr", 2e-3
    )
    assert code == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert (config["actor"]["name"], config["actor"]["lr"]) == ("adamw", 2e-3)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["optimizer"] == "adamw"


def test_optimizer_chosen_by_name_starts_from_the_presets_own_settings(run, tmp_path):
    name = tmp_path / "run"
    args = ("--total-steps", 16, "--rollout-steps", 2, "--eval-episodes", 1, "--run-dir", name)
    assert run(train_rl, "halfcheetah", *args, "--actor", "adamw")[0] == 0
    config = json.loads((name / "config.json").read_text(encoding="utf-8"))
    assert config["actor"]["lr"] == TUNED["halfcheetah"]["adamw"].lr
    assert config["critic"] == config_to_dict(TUNED["halfcheetah"]["psgd"])


def test_interrupted_run_prints_how_to_continue(run, tmp_path, monkeypatch):
    update = Updater.update

    def interrupted(self, rollout):
        os.kill(os.getpid(), signal.SIGINT)
        return update(self, rollout)

    monkeypatch.setattr(Updater, "update", interrupted)
    args = ("smoke", "--total-steps", "512", "--run-dir", str(tmp_path / "a run"))
    code, out, _ = run(train_rl, *args)
    assert code == 0
    command = (
        f"scripts/train_rl.py smoke --total-steps 512 --run-dir '{tmp_path / 'a run'}' --resume"
    )
    assert command in out
    assert json.loads((tmp_path / "a run" / "summary.json").read_text())["status"] == "interrupted"


BAD = [
    (train_rl, ("smok",), "did you mean smoke"),
    (train_rl, ("smoke", "--env-id", "HalfCheeta-v5"), "did you mean HalfCheetah-v5"),
    (train_rl, ("smoke", "--ppo.epoch", "3"), "no flag --ppo.epoch"),
    (train_rl, ("smoke", "--ppo.epochs", "0"), "ppo.epochs = 0; give 1 or more"),
    (train_rl, ("smoke", "--threads", "many"), "many"),
    (train_rl, ("smoke", "--threads", "0"), "Got --threads 0; give 1 to 256."),
    (train_rl, ("smoke", "--actor", "adamv"), "did you mean adamw"),
    (train_rl, ("smoke", "--device", "abacus"), "abacus"),
    (train_rl, ("smoke", "--resume", "--run-dir", "nothing"), "nothing"),
    (train_rl, ("smoke", "--run-dir", "/dev/null/run"), "cannot be made (Not a directory)"),
    (train_rl, ("smoke", "--resume", "--overwrite"), "give one of them"),
    (compare, ("rk", "smoke"), "no task 'rk'; known: lm, rl"),
    (compare, ("rl", "smok"), "did you mean smoke"),
    (compare, ("rl", "smoke", "--actor.lr", "1"), "give --optimizers, --lrs and --seeds"),
    (evaluate_rl, (), "There is no run folder"),
    (evaluate_rl, ("nothing",), "no checkpoint nothing"),
    (evaluate_rl, ("--episodes", "3"), "name the run folder before"),
    (evaluate_rl, ("nothing", "--video", "a.avi"), "names no film"),
    (evaluate_rl, ("nothing", "--export", "a"), "There is no nothing/config.json"),
    (evaluate_rl, ("nothing", "--episode", "3"), "did you mean --episodes"),
]


@pytest.mark.parametrize(("script", "args", "message"), BAD)
def test_bad_input_is_one_line_and_exit_code_2(run, script, args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, complaint = run(script, *args)
    assert code == 2
    assert out == ""
    assert complaint.startswith("error: ")
    assert message in complaint
    assert complaint.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("short_episodes")
def test_compare_prints_its_table(run, tmp_path):
    line = ("rl", "smoke", "--seeds", 0, 1, "--total-steps", 256, "--run-dir", tmp_path / "all")
    code, out, _ = run(compare, *line)
    assert code == 0
    assert "| psgd | 0.0015 | 2 |" in out
    assert (tmp_path / "all" / "efficiency.png").is_file()
    assert run(compare, *line, "--resume")[1] == out


def test_compare_names_the_extra_that_is_missing(run, monkeypatch):
    monkeypatch.delitem(sys.modules, "_compare_rl", raising=False)
    monkeypatch.setitem(sys.modules, "psgd_rl.entries", None)
    code, _, complaint = run(compare, "rl", "smok")
    assert code == 2
    assert "pip install 'psgd-toolkit[rl,cli]'" in complaint


def test_help_lists_presets_and_flags(monkeypatch, capsys):
    for args, words in (
        (
            ["--help"],
            (
                "halfcheetah",
                "smoke",
                "--actor NAME: psgd",
                "--critic NAME: psgd",
                "--actor.form NAME: kron",
            ),
        ),
        (["smoke", "--help"], ("--total-steps", "--ppo.target-kl", "--actor.lr", "Environments")),
    ):
        with pytest.raises(SystemExit) as stop:
            call(train_rl, monkeypatch, capsys, *args)
        assert stop.value.code == 0
        out = capsys.readouterr().out
        assert all(word in out for word in words)


def test_checkpoint_of_another_kind_is_refused(run, tmp_path):
    path = tmp_path / "other.pt"
    path.write_bytes(b"not a checkpoint")
    code, _, complaint = run(evaluate_rl, path)
    assert code == 2
    assert "damaged" in complaint
