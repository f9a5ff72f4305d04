"""Work that goes on beside the main program: in a thread on a CPU, on a side stream on CUDA."""

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import final

import torch

Work = Callable[[], None]
"""Something to do that returns nothing."""


@dataclass(frozen=True)
class Job:
    """Work, and the device that it keeps busy.

    Args:
        device: Where its tensors are.
        work: What to do, without gradients.
    """

    device: torch.device
    work: Work


@final
class Background:
    """Does jobs beside the main program, one after the other on each device, until `join`.

    Jobs on the CPU go to one thread. Jobs on a CUDA device are launched at once, on a side stream
    that goes on from where the current stream is. Jobs elsewhere are done at once. Between `run`
    and `join`, nobody may write what a job reads, nor read what it writes.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._process = 0  # that the executor is of: a fork copies it without its thread
        self._running: Future[list[Exception]] | None = None
        self._sides: dict[torch.device, torch.cuda.Stream] = {}
        # While jobs are on a side stream: the stream that they were launched from, what they use,
        # which must not be freed on that stream before they are through, and what they raised.
        self._origins: dict[torch.device, torch.cuda.Stream] = {}
        self._held: list[Job] = []
        self._errors: list[Exception] = []

    def __del__(self) -> None:
        # The memory of jobs that nobody waits for is given out again after them, not before.
        self._wait_for_streams()

    def run(self, jobs: Iterable[Job]) -> None:
        """Start jobs; those before must have been joined.

        Args:
            jobs: What to do, in this order.
        """
        for_thread: deque[Work] = deque()
        for job in jobs:
            if job.device.type == "cpu":
                for_thread.append(job.work)
                continue
            self._held.append(job)
            with self._beside(job.device):
                self._errors += _failures(deque([job.work]))
        if for_thread:
            # As many threads as here, as sums have other bits with another number of them.
            self._running = self._thread().submit(_work_off, for_thread, torch.get_num_threads())

    def join(self) -> None:
        """Make everything that follows come after the jobs; does nothing where there are none.

        Raises:
            Exception: The first that a job raised, once; the others were done all the same.
            RuntimeError: If the process was forked while jobs were running.
        """
        self._wait_for_streams()
        if self._running is not None:
            if self._process != os.getpid():
                raise RuntimeError(
                    "The process was forked while a fit with overlap = True was running; call "
                    "state_dict() before the fork, which waits for it."
                )
            self._errors += self._running.result()
            self._running = None
        errors, self._errors = self._errors, []
        if errors:
            errors[0].add_note("Raised by the fit of an earlier step, which overlap = True put off")
            raise errors[0]

    def _thread(self) -> ThreadPoolExecutor:
        """Return the executor of this process, whose thread ends with it."""
        if self._executor is None or self._process != os.getpid():
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="psgd-fit")
            self._process = os.getpid()
        return self._executor

    def _beside(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context of a device's side stream, after what its current stream does now."""
        if device.type != "cuda":
            return nullcontext()
        if device not in self._sides:
            self._sides[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side, self._origins[device] = self._sides[device], torch.cuda.current_stream(device)
        side.wait_stream(self._origins[device])
        return torch.cuda.stream(side)

    def _wait_for_streams(self) -> None:
        """Let streams wait for the side streams: where jobs came from, and the current one."""
        for device, origin in self._origins.items():
            for stream in (origin, torch.cuda.current_stream(device)):
                stream.wait_stream(self._sides[device])
        self._origins.clear()
        self._held.clear()


def _work_off(works: deque[Work], threads: int) -> list[Exception]:
    """Do work in a thread that knows nothing of the main one's settings."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    with torch.no_grad():
        return _failures(works)


def _failures(works: deque[Work]) -> list[Exception]:
    """Do all work, letting go of each piece; return what it raised, as nobody here can help."""
    errors: list[Exception] = []
    while works:
        try:
            works.popleft()()
        except Exception as error:
            errors.append(error)
    return errors
