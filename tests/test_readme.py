"""Every command and every line of Python in the README and in the documentation runs."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What each command is shortened by; its own arguments stay as they are in the README.
SHORT_GPT = (
    "--model.layers 1 --model.width 16 --model.context 16 --steps 6 --schedule.warmup 2 "
    "--eval-every 6"
)
SHORT = {
    "train_lm": SHORT_GPT,
    "compare lm": SHORT_GPT,
    "compare rl": "--total-steps 256 --eval-episodes 1 --seeds 0 1",
    "sample_lm": "--tokens 5",
    "compare_forms": "--problems memory --candidates Diagonal --steps 2 --repeats 1",
    "bench_step": "--models mlp-64 --contenders adamw-fused psgd-long-diagonal --warmup 1",
    "reproduce run": "--seeds 1 --steps 5",
    "train_rl": "--total-steps 256 --num-envs 2 --rollout-steps 64 --eval-episodes 2",
}


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = (line for page in PAGES for b in blocks(page, "bash") for line in b.splitlines())
    return [shlex.split(line) for line in lines if line]


def test_the_scripts_run_as_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order of the pages, in one folder, since some read what others wrote."""
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    Path("texts/a.txt").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    ran = []
    for name, *args in commands():
        if name == "python":
            script = Path(args[0])
            assert script.parent == Path("scripts")
            whole = " ".join([script.stem, *args[1:2]])
            short = shlex.split(SHORT.get(whole, SHORT.get(script.stem, "")))
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
    assert wanted == [".", ".[lm,cli]", ".[rl,cli]", ".[lm,rl,cli]"]
    for target in wanted:
        subprocess.run(
            [sys.executable, "-m", "pip", "install", *offline, target], cwd=ROOT, check=True
        )
        for extra in re.findall(r"\w+", target):
            assert re.search(rf"^{extra} = \[", text, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("page", "printed"),
    [("README.md", "Kron(32 diagonal, 8 dense)"), ("docs/preconditioners.md", "LowRank(114, rank")],
)
def test_the_python_blocks_run(page: str, printed: str) -> None:
    code = "\n".join(blocks(ROOT / page, "python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout


def test_no_page_has_python_that_is_not_run() -> None:
    with_python = {page.name for page in PAGES if blocks(page, "python")}
    assert with_python == {"README.md", "preconditioners.md"}


def test_the_documentation_has_the_tables_as_they_were_measured() -> None:
    measured = (ROOT / "results" / "forms.md").read_text(encoding="utf-8").strip()
    assert measured in (ROOT / "docs" / "preconditioners.md").read_text(encoding="utf-8")
