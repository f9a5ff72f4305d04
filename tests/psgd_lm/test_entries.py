from dataclasses import replace

import pytest

from psgd_lm import entries as entries_module
from psgd_lm.entries import LMGrid, members
from psgd_lm.presets import PRESETS, TUNED
from psgd_optim.config import AdamWConfig, SGDConfig
from psgd_optim.types import InputError


def test_members_are_the_product_of_the_grid():
    grid = LMGrid(optimizers=("psgd", "adamw"), lrs=(1e-3, 0.01), seeds=(0, 5))
    runs = members("smoke", PRESETS["smoke"], grid)
    assert len(runs) == 8
    run = runs["adamw-lr0.01-seed5"].config
    assert (run.optim.name, run.optim.lr, run.seed) == ("adamw", 0.01, 5)
    assert replace(run, optim=PRESETS["smoke"].optim, seed=0) == PRESETS["smoke"]


def test_without_learning_rates_every_optimizer_has_its_own():
    runs = members("smoke", PRESETS["smoke"], LMGrid())
    assert {run.config.optim for run in runs.values()} == set(TUNED["smoke"].values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizers": ()}, "no optimizers; give --optimizers one or more"),
        ({"seeds": ()}, "no seeds; give --seeds one or more"),
        ({"optimizers": ("adam",)}, "no optimizer 'adam'; did you mean adamw"),
        ({"lrs": (1e-3, 0.001)}, "psgd-lr0.001-seed0 is asked for twice"),
        ({"lrs": (-1.0,)}, "lr = -1.0; give a number above 0"),
        ({"workers": 0}, "give --workers 1 or more"),
        ({"grid": True, "lrs": (1.0,)}, "give one of them"),
        ({"optimizers": ("psgd:x",)}, "write it NAME:1e-3,2e-3@0.45"),
        ({"optimizers": ("psgd@",)}, "write it NAME:1e-3,2e-3@0.45"),
        ({"optimizers": ("psgd@2",)}, "a fraction above 0 and up to 1"),
        ({"optimizers": ("psgd@0.1@0.2",)}, "write it NAME:1e-3,2e-3@0.45"),
        ({"optimizers": ("psgd@0.45:1e-3",)}, "write it NAME:1e-3,2e-3@0.45"),
        ({"optimizers": ("psgd:",)}, "write it NAME:1e-3,2e-3@0.45"),
        ({"optimizers": ("@0.45",)}, "no optimizer ''"),
        ({"target": float("nan")}, "give --target a loss"),
    ],
)
def test_impossible_grid_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        members("smoke", PRESETS["smoke"], LMGrid(**changes))


@pytest.mark.parametrize("changes", [{"seed": 3}, {"optim": TUNED["smoke"]["adamw"]}])
def test_flags_that_the_grid_replaces_are_refused(changes):
    with pytest.raises(InputError, match="give --optimizers, --lrs and --seeds"):
        members("smoke", replace(PRESETS["smoke"], **changes), LMGrid())


def test_learning_rates_come_from_the_entry_then_the_grid_then_the_preset():
    grid = LMGrid(optimizers=("psgd:0.5", "adamw"), lrs=(0.1,))
    assert list(members("smoke", PRESETS["smoke"], grid)) == [
        "psgd-lr0.5-seed0",
        "adamw-lr0.1-seed0",
    ]
    grid = LMGrid(optimizers=("psgd", "adamw:1"), grid=True)
    assert list(members("embedded", PRESETS["embedded"], grid)) == [
        "psgd-lr0.001-seed0",
        "psgd-lr0.0014-seed0",
        "psgd-lr0.002-seed0",
        "adamw-lr1-seed0",
    ]
    names = list(members("smoke", PRESETS["smoke"], LMGrid(optimizers=("adamw",), grid=True)))
    assert names == ["adamw-lr0.005-seed0", "adamw-lr0.01-seed0", "adamw-lr0.02-seed0"]


def test_weight_decays_multiply_the_grid():
    runs = members("smoke", PRESETS["smoke"], LMGrid(optimizers=("adamw",), weight_decays=(0, 0.1)))
    assert {
        name: (run.weight_decay, run.config.optim.weight_decay) for name, run in runs.items()
    } == {
        "adamw-lr0.01-wd0-seed0": (0, 0),
        "adamw-lr0.01-wd0.1-seed0": (0.1, 0.1),
    }


def test_part_of_the_steps_is_a_run_of_its_own():
    runs = members("smoke", PRESETS["smoke"], LMGrid(optimizers=("psgd", "psgd@0.45")))
    whole, short = runs["psgd-lr0.01-seed0"], runs["psgd@0.45-lr0.01-seed0"]
    assert (whole.config.steps, short.config.steps) == (20, 9)
    assert short.entry == "psgd@0.45"
    epochs = replace(PRESETS["smoke"], steps=0, epochs=4.0)
    runs = members("smoke", epochs, LMGrid(optimizers=("psgd@0.25",)))
    config = runs["psgd@0.25-lr0.01-seed0"].config
    assert (config.steps, config.epochs) == (0, 1.0)


def test_an_entry_may_set_several_fields_which_no_other_entry_inherits(monkeypatch):
    several = {"optim": AdamWConfig(lr=0.5), "grad_clip": 9.0}
    tuned = {"adamw": AdamWConfig(lr=0.1), "clipped": several}
    monkeypatch.setitem(TUNED, "smoke", tuned)
    preset = replace(PRESETS["smoke"], **several)
    monkeypatch.setitem(entries_module.PRESETS, "smoke", preset)
    runs = members("smoke", preset, LMGrid(optimizers=("adamw", "clipped", "psgd")))
    assert {run.entry: (run.config.grad_clip, run.config.optim.lr) for run in runs.values()} == {
        "adamw": (1.0, 0.1),
        "clipped": (9.0, 0.5),
        "psgd": (1.0, 1e-3),
    }
    with pytest.raises(InputError, match="Got --grad-clip for a comparison"):
        members("smoke", replace(preset, grad_clip=3.0), LMGrid())


@pytest.mark.parametrize("preset", PRESETS)
def test_muon_and_newton_have_what_they_need_in_every_preset(preset):
    runs = members(preset, PRESETS[preset], LMGrid(optimizers=("psgd", "muon", "newton")))
    psgd, muon, newton = (run.config for run in runs.values())
    assert muon.embedding.name == muon.vector.name == "adamw"
    assert newton.grad_clip == 0
    assert (psgd.embedding, psgd.grad_clip) == (
        PRESETS[preset].embedding,
        PRESETS[preset].grad_clip,
    )


def test_flags_hold_for_every_run_also_where_an_optimizer_has_its_own():
    task = replace(PRESETS["smoke"], embedding=SGDConfig(lr=0.5))
    runs = members("smoke", task, LMGrid(optimizers=("psgd", "muon")))
    assert {run.config.embedding for run in runs.values()} == {SGDConfig(lr=0.5)}
    assert runs["muon-lr0.01-seed0"].config.vector == AdamWConfig()
