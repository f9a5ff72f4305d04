"""Where the time of a PSGD step goes: clocks around named functions of `psgd_optim`."""

import contextlib
import functools
import importlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from step_bench.timing import synchronize

Returned = TypeVar("Returned")

PHASES = (
    ("psgd_optim.blocks", "Block.gather_gradients", "gather"),
    ("psgd_optim.row_step", "_fit", "update"),
    ("psgd_optim.row_step", "_direction", "apply"),
    ("psgd_optim.decay", "Decoupled.take_step", "write"),
    ("psgd_optim.decay", "Cautious.take_step", "write"),
    ("psgd_optim.decay", "Hyperball.take_step", "write"),
)
"""Module, function or class.method, and the part of the step that it is.

A function must be named in the module that calls it. Time in a nested one counts for that alone.
"""
PARTS = tuple(dict.fromkeys(part for *_, part in PHASES))
OTHER = "other"


class PartClock:
    """Seconds spent in the parts of a step, each without the parts called from it.

    Args:
        device: Waited for at every boundary.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device
        self._nested: list[float] = []  # seconds in calls from each open one

    def around(self, part: str, function: Callable[..., Returned]) -> Callable[..., Returned]:
        """Return a function with the clock of a part around it."""

        @functools.wraps(function)
        def clocked(*args: object, **kwargs: object) -> Returned:
            synchronize(self._device)
            begin = time.perf_counter()
            self._nested.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                synchronize(self._device)
                spent = time.perf_counter() - begin
                self.seconds[part] += spent - self._nested.pop()
                if self._nested:
                    self._nested[-1] += spent

        return clocked

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Put clocks around everything in `PHASES` for a while."""
        with contextlib.ExitStack() as stack:
            for module, path, part in PHASES:
                owner, name = find(module, path)
                function = getattr(owner, name)
                stack.callback(setattr, owner, name, function)
                setattr(owner, name, self.around(part, function))
            yield


def find(module: str, path: str) -> tuple[object, str]:
    """Return what holds a function, and the function's name in it.

    Args:
        module: The module.
        path: A name in it, or `Class.method`.

    Returns:
        The module or the class, and the name.

    Raises:
        LookupError: If there is no such function.
    """
    owner: object = importlib.import_module(module)
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part, None)
    if not callable(vars(owner).get(name) if owner is not None else None):
        raise LookupError(
            f"There is no {module}.{path}; say in PHASES of step_bench/split.py what it is now."
        )
    return owner, name


def split(
    step: Callable[[], None], prepare: Callable[[], None], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Take steps apart.

    Args:
        step: One step.
        prepare: Called before every step, not timed.
        repeats: Steps to take.
        device: Where the step runs.

    Returns:
        Milliseconds of every step by part, the rest under `OTHER`.
    """
    samples: dict[str, list[float]] = {part: [] for part in (*PARTS, OTHER)}
    for _ in range(repeats):
        clock = PartClock(device)
        prepare()
        with clock.installed():
            begin = time.perf_counter()
            step()
            synchronize(device)
            clock.seconds[OTHER] = time.perf_counter() - begin - sum(clock.seconds.values())
        for part, values in samples.items():
            values.append(1000 * clock.seconds[part])
    return samples
