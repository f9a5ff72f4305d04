from types import SimpleNamespace

import pytest
import torch

from psgd_lm import timing
from psgd_lm.meter import Meter
from psgd_lm.progress import Progress
from psgd_lm.timing import PhaseTimer, means


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when it is told to."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now.seconds)
    return now


def test_phases_count_for_themselves_alone(clock):
    timer, samples = PhaseTimer(torch.device("cpu")), {}
    for _ in range(2):
        with timer.sample(samples), timer.phase("optimizer"):
            clock.seconds += 1
            for _ in range(2):
                with timer.phase("forward"):
                    clock.seconds += 10
            clock.seconds += 100
    assert samples == {"forward": [40.0, 2], "optimizer": [202.0, 2]}
    assert means(samples, "time/") == {"time/forward": 20.0, "time/optimizer": 101.0}


def test_steps_that_are_not_sampled_cost_nothing(clock):
    timer = PhaseTimer(torch.device("cpu"))
    with timer.phase("forward"):
        clock.seconds += 1
    samples = {}
    with timer.sample(samples):
        pass
    assert samples == {}


def test_a_step_that_breaks_off_is_no_sample(clock):
    timer, samples = PhaseTimer(torch.device("cpu")), {}
    with pytest.raises(RuntimeError), timer.sample(samples), timer.phase("forward"):
        raise RuntimeError
    assert samples == {}
    with timer.phase("forward"):
        clock.seconds += 1
    assert samples == {}


def make_meter(tiny_model, **progress):
    config = SimpleNamespace(precision="float32")
    return Meter(config, tiny_model, Progress(**progress))


def test_evaluations_are_no_training(clock, tiny_model):
    meter = make_meter(tiny_model, seconds=1000.0, training_seconds=500.0)
    clock.seconds += 1
    with meter.paused():
        clock.seconds += 10
    clock.seconds += 100
    assert meter.times() == {"time/seconds": 1111.0, "time/training": 601.0}


def test_speed_is_that_since_the_last_record(clock, tiny_model):
    progress = Progress(tokens=1000, training_seconds=50.0, seconds=70.0)
    meter = Meter(SimpleNamespace(precision="float32"), tiny_model, progress)
    for rate in (10, 300):
        progress.tokens += 2 * rate
        clock.seconds += 2
        with meter.paused():
            clock.seconds += 5
        assert meter.speed()["time/tokens_per_second"] == rate


def test_a_run_that_goes_back_counts_on(clock, tiny_model):
    meter = make_meter(tiny_model)
    clock.seconds += 8
    meter.restart(Progress(seconds=3.0, training_seconds=2.0))
    clock.seconds += 1
    assert meter.times() == {"time/seconds": 9.0, "time/training": 3.0}


@pytest.mark.parametrize("fitting", [(), (3, 4, 5), (7,)])
def test_logged_steps_and_the_first_that_fits_since_then_are_sampled(clock, tiny_model, fitting):
    progress = Progress()
    meter = Meter(SimpleNamespace(precision="float32"), tiny_model, progress)
    timer = PhaseTimer(torch.device("cpu"))
    sampled = []
    for number in range(1, 11):
        stepper = SimpleNamespace(fits_next=number in fitting, timer=timer)
        before = dict(progress.timing)
        with meter.sample(stepper, number, is_logged=number % 5 == 0), timer.phase("forward"):
            clock.seconds += 1
        if progress.timing != before:
            sampled.append(number)
    assert sampled == sorted({5, 10, *fitting[:1]})
