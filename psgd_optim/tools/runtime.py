"""The process around a run: device, seeds, interruption, elapsed time."""

import contextlib
import math
import random
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from types import FrameType, TracebackType
from typing import Self

import torch
from torch import Tensor

from psgd_optim.types import InputError


def resolve_device(name: str) -> torch.device:
    """Turn a device name into a device that can be used here.

    Args:
        name: `"auto"` (CUDA when there is one, else the CPU) or what `torch.device` takes.

    Returns:
        The device.

    Raises:
        InputError: If the name is unknown or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cause: Exception | None = None
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        is_usable = device.type in ("cpu", "cuda")
    except (RuntimeError, AssertionError) as error:
        is_usable, cause = False, error
    if not is_usable:
        raise InputError(
            f"The device {name!r} cannot be used here; use auto, cpu or cuda."
        ) from cause
    return device


def seed_everything(seed: int) -> None:
    """Seed Python's and torch's global generators (all devices)."""
    random.seed(seed)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of the global generators of torch and of Python.

    Args:
        device: The run's device.

    Returns:
        By name: (n,) uint8 of torch, which dropout draws from, and (n,) float64 of Python.
    """
    version, words, normal = random.getstate()
    # Exact: the words have 32 bits. Infinity stands for no normal number in store.
    stored = math.inf if normal is None else normal
    python = torch.tensor([version, *words, stored], dtype=torch.float64)
    state = {"cpu": torch.get_rng_state(), "python": python}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(device: torch.device, state: Mapping[str, Tensor]) -> None:
    """Set the global generators.

    Args:
        device: The run's device.
        state: What `random_state` returned; one of another kind of device sets the CPU's only.
    """
    torch.set_rng_state(state["cpu"])
    if "python" in state:
        version, *words, normal = state["python"].tolist()
        stored = None if math.isinf(normal) else normal
        random.setstate((int(version), tuple(map(int, words)), stored))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


MOST_THREADS = 256
"""Beyond this a number of threads is a mistake; the thread pools crash on large ones."""


def check_threads(name: str, count: int, *, least: int = 1) -> None:
    """Refuse a number of threads that cannot be meant.

    Args:
        name: The setting's flag.
        count: Its value.
        least: The smallest that is allowed; 0 where that has a meaning of its own.

    Raises:
        InputError: If it is below `least` or above `MOST_THREADS`.
    """
    if not least <= count <= MOST_THREADS:
        raise InputError(f"Got {name} {count}; give {least} to {MOST_THREADS}.")


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Give torch's CPU operations a number of threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Interrupt:
    """Turns the first SIGINT or SIGTERM into a request that a loop can honour between two steps.

    A request that is still open when the block ends passes to an `Interrupt` around it. A second
    signal raises `KeyboardInterrupt` at once. Outside the main thread, where Python
    cannot install handlers, it does nothing.

    >>> with Interrupt() as interrupt:
    ...     interrupt.requested
    False
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, Interrupt):
                outer.requested = outer.requested or self.requested
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


class Stopwatch:
    """Seconds spent in a run, continued over its interruptions.

    Args:
        start: Seconds that earlier parts of the run took.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._origin = time.perf_counter() - start

    @property
    def seconds(self) -> float:
        """Seconds since the run began, pauses between its parts left out."""
        return time.perf_counter() - self._origin
