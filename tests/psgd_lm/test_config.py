import math
from dataclasses import replace

import pytest

from psgd_lm.config import TrainConfig
from psgd_lm.presets import PRESETS
from psgd_lm.schedules import Cosine
from psgd_optim.types import InputError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps 0; give --steps 1 or more"),
        ({"batch_size": 0}, "batch_size 0; give --batch-size 1 or more"),
        ({"schedule": Cosine(warmup=20)}, "--schedule.warmup less than the 20 steps"),
        ({"epochs": 2.0}, "steps 20 and epochs 2; give one of --steps and --epochs"),
        ({"epochs": -1.0, "steps": 0}, "epochs -1.0; give --epochs 0 or more"),
        ({"epochs": math.inf, "steps": 0}, "epochs inf; give --epochs 0 or more"),
        ({"tokens_per_step": 100}, "give --tokens-per-step a multiple of the model's context, 16"),
        ({"micro_batch": 5}, "micro_batch 5 of the 4 windows of a step; give --micro-batch fewer"),
        ({"micro_batch": -1}, "micro_batch -1; give --micro-batch 0 or more"),
        ({"rollbacks": -1}, "rollbacks -1; give --rollbacks 0 or more"),
        ({"keep": -1}, "keep -1; give --keep 0 or more"),
        ({"checkpoint_every": -1}, "checkpoint_every -1; give --checkpoint-every 0 or more"),
        ({"grad_clip": -0.5}, "grad_clip -0.5; give --grad-clip 0 or more"),
        ({"grad_clip": float("nan")}, "grad_clip nan"),
        ({"seed": -1}, "seed -1; give --seed 0 or more"),
        ({"seed": 2**63}, "seed 9223372036854775808; give --seed .* less than 2"),
        ({"threads": 1000}, "--threads 1000; give 1 to 256"),
        ({"threads": 0}, "--threads 0; give 1 to 256"),
        ({"eval_every": -1}, "eval_every -1; give --eval-every 0 or more"),
    ],
)
def test_impossible_value_is_refused_with_the_way_out(changes, message):
    with pytest.raises(InputError, match=message):
        replace(PRESETS["smoke"], **changes)


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan"), float("inf")])
def test_learning_rate_must_be_a_positive_number(lr):
    with pytest.raises(InputError, match=r"lr .*; give"):
        TrainConfig(optim=replace(PRESETS["smoke"].optim, lr=lr))
