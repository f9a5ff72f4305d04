from dataclasses import replace

import pytest

from psgd_optim.config import AdamWConfig
from psgd_optim.types import InputError
from psgd_rl.entries import RLGrid, members
from psgd_rl.presets import PRESETS, TUNED

SMOKE = PRESETS["smoke"]


def test_members_are_the_product_of_the_grid():
    runs = members("smoke", SMOKE, RLGrid(lrs=(1e-3, 0.01), seeds=(0, 5)))
    assert len(runs) == 8
    run = runs["adamw-lr0.01-seed5"]
    assert run.entry == run.config.actor.name == run.config.critic.name == "adamw"
    assert (run.config.actor.lr, run.config.critic.lr, run.config.seed) == (0.01, 0.01, 5)
    assert replace(run.config, actor=SMOKE.actor, critic=SMOKE.critic, seed=0) == SMOKE


def test_optimizers_have_the_presets_settings_and_part_of_the_steps():
    grid = RLGrid(optimizers=("adamw", "psgd@0.25"), seeds=(1,))
    whole, short = members("halfcheetah", PRESETS["halfcheetah"], grid).values()
    assert whole.config.actor == TUNED["halfcheetah"]["adamw"]
    assert (short.config.actor, short.entry) == (TUNED["halfcheetah"]["psgd"], "psgd@0.25")
    assert (whole.config.total_steps, short.config.total_steps) == (1_000_000, 250_000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizers": ("adam",)}, "no optimizer 'adam'; did you mean adamw"),
        ({"lrs": (1e-3, 0.001)}, "psgd-lr0.001-seed0 is asked for twice"),
        ({"seeds": ()}, "no seeds; give --seeds one or more"),
    ],
)
def test_impossible_grid_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        members("smoke", SMOKE, RLGrid(**changes))


@pytest.mark.parametrize("changes", [{"seed": 3}, {"actor": AdamWConfig()}])
def test_flags_that_the_grid_replaces_are_refused(changes):
    with pytest.raises(InputError, match="give --optimizers, --lrs and --seeds"):
        members("smoke", replace(SMOKE, **changes), RLGrid())


def test_optimizers_have_their_own_settings_of_the_update_unless_the_run_says_otherwise():
    task = PRESETS["halfcheetah"]
    grid = RLGrid(optimizers=("psgd", "adamw"), seeds=(0,))
    limits = [run.config.ppo.target_kl for run in members("halfcheetah", task, grid).values()]
    assert limits == [0.03, 0.02]
    changed = replace(task, ppo=replace(task.ppo, target_kl=0.05))
    limits = [run.config.ppo.target_kl for run in members("halfcheetah", changed, grid).values()]
    assert limits == [0.05, 0.05]
