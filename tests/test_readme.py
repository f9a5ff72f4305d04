"""Every command and every line of Python in the README runs."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# What each command is shortened by; its own arguments stay as they are in the README.
SHORT_GPT = (
    "--model.layers 1 --model.width 16 --model.context 16 --steps 6 --warmup 2 --eval-every 6"
)
SHORT = {
    "train_lm": SHORT_GPT,
    "compare": SHORT_GPT,
    "sample_lm": "--tokens 5",
    "train_rl": "--total-steps 256 --num-envs 2 --rollout-steps 64 --eval-episodes 2",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    return [shlex.split(line) for block in blocks("bash") for line in block.splitlines() if line]


def test_the_scripts_run_as_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order of the README, in one folder, since some read what others wrote."""
    monkeypatch.chdir(tmp_path)
    ran = []
    for name, *args in commands():
        if name == "python":
            script = Path(args[0])
            assert script.parent == Path("scripts")
            short = shlex.split(SHORT.get(script.stem, ""))
            importlib.import_module(script.stem).main([*args[1:], *short])
            assert capsys.readouterr().out.strip()
            ran.append(script.stem)
    assert set(ran) == {p.stem for p in (ROOT / "scripts").glob("[!_]*.py")}


@pytest.mark.parametrize("target", ["train", "test"])
def test_the_make_targets_exist(target: str) -> None:
    assert ["make", target] in commands()
    done = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True
    )
    expected = {"train": "scripts/compare.py lm --run-dir runs/first", "test": "-m pytest"}
    assert expected[target] in done.stdout


def test_the_extras_are_those_of_the_distribution() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name, *args in commands():
        if name == "pip":
            assert args[0] == "install"
            for extra in re.findall(r"\w+", args[1].partition("[")[2]):
                assert re.search(rf"^{extra} = \[", text, flags=re.MULTILINE)


def test_the_python_blocks_run() -> None:
    code = "\n".join(blocks("python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Kron(32 diagonal, 8 dense)" in done.stdout
