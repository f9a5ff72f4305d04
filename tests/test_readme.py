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


@pytest.mark.slow
@pytest.mark.parametrize("target", ["train", "test"])
def test_the_make_targets_run(target: str, tmp_path: Path) -> None:
    assert ["make", target] in commands()
    short = {"train": f"{SHORT_GPT} --run-dir {tmp_path / 'first'}", "test": "--version"}
    # The environment that runs this test stands in for a finished installation.
    settings = [f"VENV={sys.prefix}", "STAMP=README.md", f"ARGS={short[target]}"]
    done = subprocess.run(
        ["make", "--assume-old=README.md", target, *settings],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expected = {"train": "| psgd | 0.0014 |", "test": "pytest "}
    assert expected[target] in done.stdout + done.stderr
    assert "pip install" not in done.stdout


@pytest.mark.slow
def test_the_installations_are_possible() -> None:
    """As written, but without the download of what they depend on."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    offline = ["--dry-run", "--quiet", "--no-deps", "--no-build-isolation"]
    wanted = [args[1] for name, *args in commands() if name == "pip"]
    assert wanted == [".", ".[lm,cli]", ".[rl,cli]"]
    for target in wanted:
        subprocess.run(
            [sys.executable, "-m", "pip", "install", *offline, target], cwd=ROOT, check=True
        )
        for extra in re.findall(r"\w+", target):
            assert re.search(rf"^{extra} = \[", text, flags=re.MULTILINE)


def test_the_python_blocks_run() -> None:
    code = "\n".join(blocks("python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Kron(32 diagonal, 8 dense)" in done.stdout
