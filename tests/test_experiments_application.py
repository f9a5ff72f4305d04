"""Races of whole training runs, with a training that is written down instead of done."""

import math

import pytest
import torch
from experiments.application import RANDOM_STEPS, ApplicationRace, RandomWalk
from experiments.plan import CONTROLS, NO_OP, RANDOM_SIZE, RANDOM_STEP
from experiments.results import DIVERGED, FINISHED, Key

from psgd_optim.config import AdamWConfig

CPU = torch.device("cpu")


def race(asked, loss=1.0):
    def train(training):
        asked.append(training)
        return {"loss": loss, "perplexity": math.exp(loss)}

    return ApplicationRace(
        train=train,
        optimizers={"AdamW": (AdamWConfig(lr=1e-3), AdamWConfig(lr=1e-2))},
        steps=40,
        seeds=2,
        target="loss",
        columns={"loss": "loss"},
    )


def test_a_training_gets_the_settings_of_its_rate():
    asked = []
    outcome = race(asked).run(Key("", "AdamW", 1e-2, 3, 40), CPU)
    (training,) = asked
    assert (training.optimizer.lr, training.seed, training.steps) == (1e-2, 3, 40)
    assert not training.is_control
    assert not training.folder.parent.exists()  # thrown away
    assert outcome.status == FINISHED
    assert outcome.figures == {"loss": 1.0, "perplexity": math.e}


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_training_without_a_loss_has_diverged(loss):
    outcome = race([], loss).run(Key("", "AdamW", 1e-3, 0, 40), CPU)
    assert (outcome.status, outcome.figures) == (DIVERGED, {})


def test_controls_are_random_walks_as_long_as_the_methods_and_of_no_length():
    asked = []
    for name in CONTROLS:
        race(asked).run(Key("", name, None, 0, 40), CPU)
    assert all(training.is_control for training in asked)
    still, walk = (asked[CONTROLS.index(name)] for name in (NO_OP, RANDOM_STEP))
    assert (still.optimizer.lr, still.steps) == (1e-30, 1)
    # 40 steps of RANDOM_SIZE come as far as RANDOM_STEPS larger ones.
    assert walk.steps == RANDOM_STEPS
    assert math.isclose(walk.optimizer.lr**2 * RANDOM_STEPS, RANDOM_SIZE**2 * 40)


def test_a_random_walk_moves_what_has_a_gradient_by_its_rate_whatever_the_gradient():
    def walked(scale):
        moved, left = torch.zeros(20_000), torch.zeros(3)
        parameters = [each.requires_grad_() for each in (moved, left)]
        moved.grad = torch.full_like(moved, scale)
        optimizer = RandomWalk(parameters, lr=0.1)
        optimizer.step()
        first = moved.detach().clone()
        optimizer.step()
        return first, moved.detach() - first, left.detach()

    first, second, left = walked(1.0)
    # The deviation of 20,000 draws is within 5 standard errors, each 0.5 %.
    assert abs(float(first.std()) - 0.1) < 0.0025
    assert not torch.equal(first, second)
    assert not left.any()
    assert all(map(torch.equal, walked(1.0), walked(-1e9)))
