import math
from dataclasses import replace

import pytest
import torch

from psgd_lm.schedules import (
    SCHEDULES,
    Constant,
    Cosine,
    Linear,
    Plateau,
    Schedule,
    Steps,
    WarmupStableDecay,
)
from psgd_optim import InputError


def values(schedule: Schedule, steps: int) -> list[float]:
    schedule.check(steps)
    return [schedule.factor(step, steps, []) for step in range(steps)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_warms_up_and_stays_in_range(name: str) -> None:
    schedule = SCHEDULES[name]
    assert schedule.name == name
    found = values(replace(schedule, warmup=4), 20)
    assert found[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert all(0 <= value <= 1 for value in found)
    assert found[4:] == sorted(found[4:], reverse=True)


@pytest.mark.parametrize(("steps", "warmup", "final"), [(1000, 100, 0.1), (17, 0, 0.0), (3, 2, 1)])
def test_cosine_is_the_formula_of_the_runs_so_far_to_the_bit(
    steps: int, warmup: int, final: float
) -> None:
    def reference(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1, steps - 1 - warmup)
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    found = values(Cosine(warmup=warmup, final=final), steps)
    assert found == [reference(step) for step in range(steps)]


def test_linear_ends_at_its_last_value() -> None:
    found = values(Linear(warmup=0, final=0.2), 5)
    assert found == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_decay_at_the_end_takes_its_part_of_the_steps() -> None:
    found = values(WarmupStableDecay(warmup=2, decay=0.4, final=0.1), 10)
    assert found == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 0.775, 0.55, 0.325, 0.1])
    root = values(WarmupStableDecay(warmup=0, decay=0.4, shape="sqrt"), 10)
    assert root[6:] == pytest.approx([1 - math.sqrt(k / 4) for k in (1, 2, 3, 4)])
    # The smallest decay is one step.
    assert values(WarmupStableDecay(warmup=0, decay=0.01), 10) == [1.0] * 9 + [0.0]


def test_falls_at_steps_and_at_parts_of_the_run() -> None:
    found = values(Steps(warmup=0, at=(0.5, 8), factor_each=0.1), 10)
    assert found == pytest.approx([1] * 5 + [0.1] * 3 + [0.01] * 2)


def test_constant_is_full_after_the_warmup() -> None:
    assert values(Constant(warmup=1), 4) == [0.5, 1, 1, 1]


@pytest.mark.parametrize("patience", [0, 1, 2])
def test_plateau_is_torchs_rule_as_a_function_of_the_history(patience: int) -> None:
    generator = torch.Generator().manual_seed(patience)
    losses = torch.rand(40, generator=generator, dtype=torch.float64).cummin(0).values
    losses = (losses + 0.05 * torch.rand(40, generator=generator, dtype=torch.float64)).tolist()
    losses[7] = math.nan
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, threshold=0.0, eps=0.0
    )
    schedule = Plateau(warmup=0, factor_each=0.5, patience=patience)
    history: list[tuple[int, float]] = []
    for i, loss in enumerate(losses):
        reference.step(loss)
        history.append((10 * (i + 1), loss))
        got = schedule.factor(10 * (i + 1), 1000, history)
        assert got == optimizer.param_groups[0]["lr"]
    assert got < 0.1
    # Later evaluations do not change what an earlier step had.
    assert schedule.factor(10, 1000, history) == 1.0


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Cosine, {"warmup": -1}, "schedule.warmup -1; give --schedule.warmup 0 or more"),
        (Cosine, {"final": 1.5}, "schedule.final 1.5; give --schedule.final between 0 and 1"),
        (Linear, {"final": math.nan}, "schedule.final nan"),
        (WarmupStableDecay, {"decay": 0.0}, "schedule.decay 0.0"),
        (Steps, {"at": (1.5,)}, "schedule.at"),
        (Steps, {"at": (0.0,)}, "schedule.at"),
        (Steps, {"factor_each": 1.0}, "--schedule.factor-each between 0 and 1"),
        (Plateau, {"patience": -1}, "schedule.patience -1"),
        (Plateau, {"factor_each": 0.0}, "--schedule.factor-each"),
    ],
)
def test_impossible_settings_are_refused(
    kind: type, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        kind(**settings)


def test_a_run_that_is_too_short_is_refused() -> None:
    with pytest.raises(InputError, match=r"--schedule.warmup less than the 20 steps"):
        Cosine(warmup=20).check(20)
    with pytest.raises(InputError, match="at most the 5 steps before the decay"):
        WarmupStableDecay(warmup=6, decay=0.5).check(10)
