"""The measurement as a whole, on short runs."""

import json
from pathlib import Path

import pytest

from psgd_lm.form_study.study import CHOICE_SEED, SEEDS, StudyConfig, run_study
from psgd_optim.types import InputError


def study(path: Path, *problems: str, candidates: tuple[str, ...]) -> tuple[dict, str]:
    config = StudyConfig(
        problems=problems, candidates=candidates, steps=3, repeats=2, out=path / "out" / "f.json"
    )
    said: list[str] = []
    table = run_study(config, "the command", said.append)
    assert said
    assert config.out.with_suffix(".md").read_text() == table + "\n"
    return json.loads(config.out.read_text()), table


def test_rates_are_chosen_on_one_seed_and_figures_are_of_others(tmp_path):
    assert CHOICE_SEED not in SEEDS
    results, table = study(tmp_path, "memory", candidates=("Diagonal",))
    record = results["memory"]
    assert [row["name"] for row in record["rows"]] == ["AdamW", "Diagonal"]
    for row in record["rows"]:
        losses = dict(row["grid"])
        assert losses[row["lr"]] == min(losses.values())
        assert len(row["losses"]) == len(SEEDS)
        assert not set(row["losses"]) & set(losses.values())
        assert row["std"] > 0
        for times in row["ms"].values():
            assert 0 < times["min"] <= times["median"] <= times["max"]
    assert record["rows"][0]["ms"]["fitting"]["ratio"] == 1
    assert record["facts"]["command"] == "the command"
    assert str(tmp_path) not in json.dumps(record)
    assert "| Diagonal |" in table


def test_problems_of_earlier_runs_are_kept(tmp_path):
    first, _ = study(tmp_path, "memory", candidates=("Diagonal",))
    both, table = study(tmp_path, "rosenbrock", candidates=("Diagonal",))
    assert both["memory"] == first["memory"]
    assert both["rosenbrock"]["rows"] == [{"name": "Diagonal", "iterations": [3] * 10}]
    assert table.index("addition") < table.index("Rosenbrock")


def test_rates_can_be_given(tmp_path):
    config = StudyConfig(
        problems=("memory",),
        candidates=("Diagonal",),
        lrs=(0.02,),
        steps=2,
        repeats=1,
        out=tmp_path / "f.json",
    )
    run_study(config, "", str)
    rows = json.loads(config.out.read_text())["memory"]["rows"]
    assert [[lr for lr, _ in row["grid"]] for row in rows] == [[0.02], [0.02]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"problems": ("memry",)}, "did you mean memory"),
        ({"candidates": ("Diagonall",)}, "did you mean Diagonal"),
        ({"steps": -1}, "give --steps 0 or more"),
        ({"repeats": 0}, "--repeats 1 or more"),
    ],
)
def test_unknown_names_and_numbers_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        StudyConfig(**settings)
