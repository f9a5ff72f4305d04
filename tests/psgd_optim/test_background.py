"""Jobs beside the main program: order, errors, threads, forks."""

import contextlib
import multiprocessing
import threading
import warnings
import weakref
from functools import partial

import pytest
import torch

from psgd_optim.background import Background, Job, Work

CPU = torch.device("cpu")
PATIENCE = 20  # seconds; nothing here takes as long unless it hangs


def jobs(*works: Work, device: torch.device = CPU) -> list[Job]:
    return [Job(device, work) for work in works]


def test_jobs_run_in_order_in_one_other_thread_while_the_caller_goes_on() -> None:
    seen: list[tuple[str, str]] = []
    gate = threading.Event()

    def wait() -> None:
        seen.append(("first" if gate.wait(PATIENCE) else "late", threading.current_thread().name))

    background = Background()
    background.run(jobs(wait, lambda: seen.append(("second", threading.current_thread().name))))
    assert not seen
    gate.set()
    background.join()
    background.run(jobs(lambda: seen.append(("third", threading.current_thread().name))))
    background.join()
    assert [what for what, _ in seen] == ["first", "second", "third"]
    assert {name for _, name in seen} == {"psgd-fit_0"}


def test_jobs_take_no_gradients_and_as_many_threads_as_their_caller() -> None:
    seen: list[tuple[bool, int]] = []
    background = Background()
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        background.run(
            jobs(lambda: seen.append((torch.is_grad_enabled(), torch.get_num_threads())))
        )
        background.join()
    assert seen == [(False, 1), (False, 2), (False, 1)]


def test_the_first_error_is_raised_once_and_all_jobs_are_done() -> None:
    done: list[int] = []

    def fail() -> None:
        raise ArithmeticError("no fit today")

    def fail_again() -> None:
        raise KeyError("nor this one")

    background = Background()
    background.run(jobs(fail, lambda: done.append(1), fail_again, lambda: done.append(2)))
    with pytest.raises(ArithmeticError, match="no fit today") as caught:
        background.join()
    assert "fail" in [entry.name for entry in caught.traceback]
    assert caught.value.__notes__ == [
        "Raised by the fit of an earlier step, which overlap = True put off"
    ]
    assert done == [1, 2]
    background.join()
    background.run(jobs(lambda: done.append(3)))
    background.join()
    assert done == [1, 2, 3]


def test_jobs_on_other_devices_are_done_at_once_and_raise_when_joined() -> None:
    done: list[str] = []

    def fail() -> None:
        raise ArithmeticError("no fit today")

    background = Background()
    background.run(
        jobs(
            fail, lambda: done.append(threading.current_thread().name), device=torch.device("meta")
        )
    )
    assert done == [threading.current_thread().name]
    with pytest.raises(ArithmeticError):
        background.join()


def test_no_thread_before_the_first_job_and_none_after_the_last_reference() -> None:
    before = set(threading.enumerate())
    background = Background()
    background.join()
    background.run([])
    assert not set(threading.enumerate()) - before
    background.run(jobs(lambda: None))
    (thread,) = set(threading.enumerate()) - before
    gone = weakref.ref(background)
    del background
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert gone() is None


def in_a_fork(work: Work) -> int | None:
    """Return the exit code of a forked process that does some work."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
    process.join(PATIENCE)
    process.kill()
    return process.exitcode


def test_a_fork_has_a_thread_of_its_own() -> None:
    done: list[int] = []
    background = Background()
    background.run(jobs(lambda: done.append(1)))
    background.join()

    def child() -> None:
        background.join()
        background.run(jobs(lambda: done.append(2)))
        background.join()
        assert done == [1, 2]

    assert in_a_fork(child) == 0
    assert done == [1]


def test_a_fork_in_the_middle_of_a_job_is_noticed() -> None:
    gate = threading.Event()
    background = Background()
    background.run(jobs(lambda: gate.wait(PATIENCE) and None))

    def child() -> None:
        with pytest.raises(RuntimeError, match=r"call state_dict\(\) before the fork"):
            background.join()

    assert in_a_fork(child) == 0
    gate.set()
    background.join()


class FakeStream:
    """A stream that writes down what waits for what, on a machine without any."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self._log = name, log

    def wait_stream(self, other: "FakeStream") -> None:
        self._log.append(f"{self.name} waits for {other.name}")


def test_a_side_stream_waits_for_its_caller_who_waits_when_joined_or_when_all_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []
    current = [FakeStream("main", log)]
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream("side", log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    background, device = Background(), torch.device("cuda", 0)
    background.run(jobs(lambda: log.append("job"), device=device))
    assert log == ["side waits for main", "job"]
    current.append(FakeStream("other", log))
    background.join()
    assert log[2:] == ["main waits for side", "other waits for side"]
    background.join()
    assert len(log) == 4
    background.run(jobs(lambda: log.append("job"), device=device))
    del background
    assert log[4:7] == ["side waits for other", "job", "other waits for side"]


def test_what_jobs_on_a_stream_use_is_held_until_they_are_joined() -> None:
    class Used:
        pass

    used = Used()
    alive, background = weakref.ref(used), Background()
    background.run(jobs(partial(id, used), device=torch.device("meta")))  # type: ignore[arg-type]
    del used
    assert alive() is not None
    background.join()
    assert alive() is None


@pytest.mark.gpu
def test_a_side_stream_follows_its_caller_and_is_waited_for() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    x = torch.zeros(2**24, device=device)
    streams: list[torch.cuda.Stream] = []

    def work() -> None:
        streams.append(torch.cuda.current_stream(device))
        x.mul_(3)

    background = Background()
    for _ in range(5):
        x.fill_(1)
        for _ in range(50):
            x.add_(1)
        background.run(jobs(work, device=device))
        background.join()
        x.add_(1)
        assert bool((x == 154).all())
    assert all(stream != torch.cuda.current_stream(device) for stream in streams)
    assert len(set(streams)) == 1
