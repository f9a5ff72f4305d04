"""Learning rates over a run."""

import pytest
import torch

from psgd_optim.types import InputError
from psgd_rl.schedules import SCHEDULES, Constant, KLAdaptive, LearningRate, Linear


def make(schedule, lr=0.4):
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": x} for x in (lr, 2 * lr)]
    optimizer = torch.optim.SGD(groups)
    return LearningRate(optimizer, schedule), optimizer


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (Constant(), [1, 1, 1, 1]),
        (Linear(), [1, 0.75, 0.5, 0.25]),
        (Linear(final=0.5), [1, 0.875, 0.75, 0.625]),
        (Constant(warmup=3), [0.25, 0.5, 0.75, 1]),
        (Linear(warmup=1), [0.5, 0.75, 0.5, 0.25]),
    ],
)
def test_schedule_sets_every_group(schedule, factors):
    rate, optimizer = make(schedule)
    for i, factor in enumerate(factors):
        assert rate.set(i, 4) == pytest.approx(0.4 * factor)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.4 * factor, 0.8 * factor])


def test_kl_schedule_follows_the_policy_within_its_limits():
    rate, _ = make(KLAdaptive(target=0.01, change=2.0, least=0.2, most=3.0), lr=1.0)
    found = []
    for kl in (0.021, 0.021, 0.021, 0.02, 0.005, 0.0049, 0.0, 0.0, 0.0, 0.0):
        rate.adapt(kl)
        found.append(rate.set(0, 1))
    assert found == pytest.approx([0.5, 0.25, 0.2, 0.2, 0.2, 0.4, 0.8, 1.6, 3.0, 3.0])


def test_state_goes_on_from_what_was_adapted():
    one, two = make(KLAdaptive())[0], make(KLAdaptive())[0]
    one.adapt(1.0)
    two.load_state_dict(one.state_dict())
    assert two.set(0, 1) == one.set(0, 1) == pytest.approx(0.4 / 1.5)


def test_names_are_those_of_the_classes():
    assert {name: type(schedule).name for name, schedule in SCHEDULES.items()} == {
        name: name for name in ("linear", "constant", "kl")
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(warmup=-1), "warmup = -1 .* give 0 or more"),
        (lambda: Linear(final=1.5), "final = 1.5"),
        (lambda: KLAdaptive(target=0.0), "target = 0.0"),
        (lambda: KLAdaptive(change=1.0), "change = 1.0"),
        (lambda: KLAdaptive(least=0.0), "least = 0.0"),
        (lambda: KLAdaptive(most=0.5), "most = 0.5"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(InputError, match=message):
        make()
