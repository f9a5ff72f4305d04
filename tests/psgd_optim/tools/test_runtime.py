import os
import random
import signal
import threading

import pytest
import torch

from psgd_optim.tools.runtime import (
    Interrupt,
    Stopwatch,
    check_threads,
    random_state,
    resolve_device,
    seed_everything,
    set_random_state,
    torch_threads,
)
from psgd_optim.types import InputError


def test_auto_is_the_best_device_there_is() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == expected
    assert resolve_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", ""])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="use auto, cpu or cuda"):
        resolve_device(name)


def test_seeding_repeats_the_global_generators() -> None:
    draws = []
    for _ in range(2):
        seed_everything(5)
        draws.append((random.random(), float(torch.rand(()))))
    assert draws[0] == draws[1]


@pytest.mark.parametrize("normals", [0, 1])  # Python draws normal numbers in pairs
def test_generators_go_on_where_they_were(normals: int) -> None:
    def draw() -> list[float]:
        return [random.gauss(0, 1), random.random(), float(torch.rand(()))]

    device = torch.device("cpu")
    seed_everything(3)
    for _ in range(normals):
        random.gauss(0, 1)
    state = random_state(device)
    first = draw()
    set_random_state(device, state)
    assert draw() == first


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request_and_the_second_an_interruption(number: int) -> None:
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), number)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_a_request_passes_to_the_interrupt_around_it() -> None:
    with Interrupt() as outer:
        with Interrupt() as inner:
            os.kill(os.getpid(), signal.SIGINT)
        assert inner.requested
        assert outer.requested


@pytest.mark.parametrize("count", [0, -1, 100_000])
def test_numbers_of_threads_that_cannot_be_meant_are_refused(count: int) -> None:
    check_threads("--threads", 1)
    with pytest.raises(InputError, match=f"Got --threads {count}; give 1 to 256"):
        check_threads("--threads", count)


def test_outside_the_main_thread_it_does_nothing() -> None:
    seen = []

    def work() -> None:
        with Interrupt() as interrupt:
            seen.append(interrupt.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="inside"), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError("inside")
    assert torch.get_num_threads() == before


def test_a_stopwatch_goes_on_from_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    watch = Stopwatch(start=5.0)
    now[0] = 102.5
    assert watch.seconds == 7.5
