"""Clocks, and what keeps a measurement fair: the same gradients, and silence."""

import contextlib
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

_LEAST_SECONDS = 0.01
"""A sample of a shorter step is the mean over several, so that the clocks do not matter."""
_MOST_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much to measure, and what is too much.

    Args:
        repeats: Samples of everything, at least 1.
        warmup: Steps of every kind before the first sample, at least 1.
        longest: Seconds; a contender whose step takes longer after the warm-up is left out.
        max_state: Bytes; a contender with more state is left out.
    """

    repeats: int
    warmup: int
    longest: float = math.inf
    max_state: float = math.inf


@dataclass(frozen=True)
class Times:
    """Milliseconds that something took."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Samples:
    """Milliseconds per step, one number per repeat."""

    steps: int
    """Steps of which a sample is the mean."""
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, times: Iterable[Times]) -> None:
        """Add the mean over the steps of a sample."""
        taken = list(times)
        self.wall.append(sum(t.wall for t in taken) / len(taken))
        self.cpu.append(sum(t.cpu for t in taken) / len(taken))

    def record(self) -> dict[str, object]:
        """Return the numbers as JSON values."""
        return {"steps_per_sample": self.steps, "wall_ms": self.wall, "cpu_ms": self.cpu}


def steps_per_sample(step: Times, period: int = 1) -> int:
    """Return how many steps to take per sample: whole periods, not too short.

    Args:
        step: What one step takes.
        period: Steps after which the cost repeats.

    Returns:
        A multiple of the period.
    """
    periods = _LEAST_SECONDS / (period * max(step.wall / 1000, 1e-9))
    return period * max(1, min(round(periods), _MOST_STEPS // period))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(action: Callable[[], None], device: torch.device) -> Times:
    """Run something, to its end on the device, and return what it took."""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    synchronize(device)
    spent = time.process_time() - cpu
    return Times(wall=1000 * (time.perf_counter() - wall), cpu=1000 * spent)


class Gradients:
    """Copies of the gradients of a backward pass, as some optimizers overwrite or drop theirs.

    Args:
        parameters: Have gradients.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._kept = [(p, p.grad.clone()) for p in parameters if p.grad is not None]

    def restore(self) -> None:
        """Give every parameter its gradient."""
        for parameter, kept in self._kept:
            if parameter.grad is None or parameter.grad.shape != kept.shape:
                parameter.grad = kept.clone()
            else:
                parameter.grad.copy_(kept)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Drop what packages print and warn, to Python's streams and to the process's error output."""
    sys.stderr.flush()
    held = os.dup(2)
    try:
        with (
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
            warnings.catch_warnings(),
        ):
            os.dup2(nowhere.fileno(), 2)
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(held, 2)
        os.close(held)
