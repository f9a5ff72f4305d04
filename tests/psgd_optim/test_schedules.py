import math
import pickle

import pytest

from psgd_optim.schedules import Adaptive, Anneal, Every, LogPeriod, value_at


def test_value_at_takes_numbers_and_functions() -> None:
    assert value_at(0.3, 7) == 0.3
    assert value_at(lambda step: step / 2, 7) == 3.5


def test_anneal_is_flat_then_falls_to_its_floor() -> None:
    rate = Anneal(1.0, 0.03, flat=500, decay=1e-3)
    assert rate(0) == rate(500) == 1.0
    assert rate(1500) == pytest.approx(math.exp(-1))
    assert rate(10_000) == 0.03
    # The mean over 10 000 steps that the design quotes for this schedule is 16.5 %.
    assert sum(rate(step) for step in range(10_000)) / 10_000 == pytest.approx(0.165, abs=0.002)


def test_every_opens_once_a_period() -> None:
    assert sum(Every(7)(step) for step in range(700)) == 100


def test_p18_the_log_period_opens_106_050_times_in_500_000_steps() -> None:
    gate = LogPeriod()
    assert sum(gate(step) for step in range(500_000)) == 106_050


def test_the_log_period_grows_by_one_with_every_digit() -> None:
    gate = LogPeriod()
    # The step counts from 0, the iteration t of the schedule from 1.
    for first, last, period in [(1, 99, 1), (100, 999, 2), (1000, 9999, 3), (10_000, 99_999, 4)]:
        opened = [t for t in range(first, last + 1) if gate(t - 1)]
        assert opened == [t for t in range(first, last + 1) if t % period == 0]


@pytest.mark.parametrize("schedule", [Anneal(1.0, 0.1), Every(3), LogPeriod()])
def test_schedules_can_be_pickled(schedule: Anneal | Every | LogPeriod) -> None:
    assert pickle.loads(pickle.dumps(schedule)) == schedule


@pytest.mark.parametrize("bad", [(0.1, 1.0), (1.0, -0.1)])
def test_anneal_refuses_to_rise_or_go_below_zero(bad: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="start >= end >= 0"):
        Anneal(*bad)


def test_every_refuses_a_period_below_one() -> None:
    with pytest.raises(ValueError, match="whole number from 1 on"):
        Every(0)


@pytest.mark.parametrize("step", [0, 10, 10**6])
def test_adaptive_gives_its_largest_rate_which_the_step_then_lowers(step: int) -> None:
    assert Adaptive(0.1, 0.5)(step) == value_at(Adaptive(0.1, 0.5), step) == 0.5
    assert pickle.loads(pickle.dumps(Adaptive(0.1, 0.5))) == Adaptive(0.1, 0.5)


@pytest.mark.parametrize(
    "bad", [(0.0, 0.5), (0.6, 0.5), (0.1, 1.0), (0.1, 0.5, 1.0), (0.1, 0.5, -1)]
)
def test_adaptive_refuses_limits_outside_their_range(bad: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="give 0 < low <= high < 1 and decay in"):
        Adaptive(*bad)
