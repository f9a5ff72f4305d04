"""Where the time of a step goes, measured on few steps, so that the others need no waiting."""

import contextlib
import time
from collections.abc import Iterator

import torch

Samples = dict[str, list[float]]
"""Per phase, the seconds that were measured and the number of steps they were measured on."""


class PhaseTimer:
    """Times the phases of the steps that are sampled, and does nothing in all others.

    A CUDA device works behind the host: only waiting for it says what a phase took, and waiting
    costs the time that host and device would have shared.

    Args:
        device: Where the phases run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._now: dict[str, float] | None = None

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a part of the step; phases inside of it count for themselves alone."""
        if self._now is None:
            yield
            return
        start, others = self._seconds(), sum(self._now.values())
        yield
        inner = sum(self._now.values()) - others
        self._now[name] = self._now.get(name, 0.0) + self._seconds() - start - inner

    @contextlib.contextmanager
    def sample(self, into: Samples) -> Iterator[None]:
        """Time the phases of a step.

        Args:
            into: What the times are added to.

        Yields:
            Nothing.
        """
        self._now = {}
        try:
            yield
            for name, seconds in self._now.items():
                total, count = into.get(name, [0.0, 0])
                into[name] = [total + seconds, count + 1]
        finally:
            self._now = None

    def _seconds(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def means(samples: Samples, prefix: str) -> dict[str, float]:
    """Return the mean seconds of every phase, by its name behind a prefix."""
    return {f"{prefix}{name}": total / count for name, (total, count) in samples.items()}
