"""Bytes: what optimizers keep, and what a step needs besides."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from step_bench.timing import silence, synchronize


def state_bytes(optimizers: Iterable[torch.optim.Optimizer]) -> int:
    """Return the bytes allocated for the state of optimizers, views of one storage counted once."""
    sizes: dict[int, int] = {}
    for optimizer in optimizers:
        for x in _tensors(dict(optimizer.state)):
            storage = x.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def _tensors(value: object) -> Iterator[Tensor]:
    """Yield the tensors in nested lists and dicts; parameters are no state."""
    if isinstance(value, torch.nn.Parameter):
        return
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)


def peak_bytes(action: Callable[[], None], device: torch.device) -> int:
    """Return the most bytes that something holds at once above what was held before.

    Args:
        action: What to run, once.
        device: Whose memory to look at.

    Returns:
        The peak.
    """
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with silence(), torch.autograd.profiler.profile(profile_memory=True) as profile:
        action()
    results = profile.kineto_results
    events = [] if results is None else results.events()
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
