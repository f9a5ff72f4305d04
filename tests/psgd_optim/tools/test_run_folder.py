import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from psgd_optim.config import AdamWConfig, OptimizerConfig, PSGDConfig
from psgd_optim.tools.checkpoint import keep_copy, kept_copies, write_checkpoint
from psgd_optim.tools.choices import config_to_dict
from psgd_optim.tools.run_folder import (
    LAST,
    RunFolder,
    read_json,
    read_run,
    write_json,
)
from psgd_optim.types import InputError


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 3
    optim: OptimizerConfig = field(default_factory=PSGDConfig)
    run_dir: Path = Path("runs/x")
    device: str = "auto"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_its_configuration_metrics_events_and_summary(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with RunFolder(path, "app", Config()) as folder:
        folder.log(1, {"train/loss": 0.5})
        folder.write_summary({"status": "finished"})
    assert read_json(path / "config.json")["optim"]["name"] == "psgd"
    assert lines(path) == [{"step": 1, "train/loss": 0.5}]
    assert read_json(path / "summary.json") == {"status": "finished"}
    assert list(path.glob("events.out.tfevents.*"))
    assert not list(path.glob("*.partial"))


def test_the_configuration_tells_optimizers_apart() -> None:
    first, second = config_to_dict(Config()), config_to_dict(Config(optim=AdamWConfig()))
    assert (first["optim"]["name"], second["optim"]["name"]) == ("psgd", "adamw")
    assert json.loads(json.dumps(first)) == first


def test_an_existing_run_needs_a_decision(tmp_path: Path) -> None:
    path = tmp_path / "run"
    RunFolder(path, "app", Config()).close()
    (path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(InputError, match="--resume, --overwrite or another --run-dir"):
        RunFolder(path, "app", Config())
    assert lines(path) == [{"step": 1}]
    RunFolder(path, "app", Config(), overwrite=True).close()
    assert not (path / "metrics.jsonl").exists()
    with pytest.raises(InputError, match="give one of them"):
        RunFolder(path, "app", Config(), resume=True, overwrite=True)


def test_a_folder_of_something_else_is_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="is no run folder"):
            RunFolder(tmp_path, "app", Config(), overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_resuming_needs_the_same_configuration(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(InputError, match=r"There is no .*config.json"):
        RunFolder(path, "app", Config(), resume=True)
    RunFolder(path, "app", Config()).close()
    RunFolder(path, "app", replace(Config(), device="cpu", run_dir=path), resume=True).close()
    with pytest.raises(InputError, match="started with steps = 3, got 4"):
        RunFolder(path, "app", replace(Config(), steps=4), resume=True)


def test_rewinding_drops_what_an_interrupted_run_logged_too_much(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with RunFolder(path, "app", Config()) as folder:
        for step in range(1, 6):
            folder.log(step, {"x": float(step)})
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "x"')  # the line that a crash cut
    with RunFolder(path, "app", Config(), resume=True) as folder:
        folder.rewind(3)
        folder.log(4, {"x": 40.0})
    assert [(row["step"], row["x"]) for row in lines(path)] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_rewinding_drops_checkpoints_of_steps_that_are_still_to_come(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", "app", Config()) as folder:
        for step in (2, 3, 4):
            write_checkpoint(folder.last_checkpoint, "app", {"step": step})
            keep_copy(folder.last_checkpoint, step, 5)
        folder.rewind(3)
        kept = kept_copies(folder.last_checkpoint.parent)
    assert [path.name for path in kept] == ["step-000000002.pt", "step-000000003.pt"]


def test_a_folder_of_another_kind_is_neither_resumed_nor_deleted(tmp_path: Path) -> None:
    path = tmp_path / "run"
    RunFolder(path, "app", Config()).close()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"hidden_size": 8}')
    for folder, kind in ((path, "app"), (tmp_path / "model", "None")):
        for flags in ({"overwrite": True}, {"resume": True}):
            with pytest.raises(InputError, match=f"is of kind {kind}, not other"):
                RunFolder(folder, "other", Config(), **flags)
        assert (folder / "config.json").exists()


def test_overwriting_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", "app", Config()).close()
    (tmp_path / "run" / "old.txt").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    RunFolder(tmp_path / "link", "app", Config(), overwrite=True).close()
    assert (tmp_path / "link").is_symlink()
    assert not (tmp_path / "run" / "old.txt").exists()


def test_a_run_is_read_with_its_own_checkpoint_only(tmp_path: Path) -> None:
    path, config = tmp_path / "run", Config()
    RunFolder(path, "app", config).close()
    write_checkpoint(path / LAST, "app", {"config": config_to_dict(config), "x": 1})
    settings, content = read_run(path, "app")
    assert (settings["steps"], content["x"]) == (3, 1)
    with pytest.raises(InputError, match="is of kind app, not other"):
        read_run(path, "other")
    other = config_to_dict(replace(config, optim=AdamWConfig()))
    write_checkpoint(path / LAST, "app", {"config": other})
    with pytest.raises(InputError, match=r"says optim\.name = psgd, got adamw in the checkpoint"):
        read_run(path, "app")


def test_json_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1}
    for content, message in (("{", "is not readable JSON"), ("[]", "holds a list")):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            read_json(path)
    with pytest.raises(InputError, match="There is no"):
        read_json(path / "below.json")
