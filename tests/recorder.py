"""Recordings of steps on a CPU, by a recorder that does as CUDA graphs do, and runs to record."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from psgd_optim import PSGD, Fitting
from psgd_optim.capture import Captured, Recording, Step

SHAPES = [(5, 4), (5, 1, 4), (4,), (), (9, 2)]
WAITING = {"item", "tolist", "__bool__", "__float__", "__int__", "nonzero", "cpu", "numpy"}


class NoWaiting(TorchFunctionMode):
    """Refuses what would read a device, or copy to it, while a graph is recorded."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in WAITING or func is torch.tensor:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        return func(*args, **(kwargs or {}))


class Tape(TorchDispatchMode):
    """Records operations with the tensors that they had, as a CUDA graph does with addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.written: list[Tensor] = []
        self.before: dict[int, tuple[Any, Any]] = {}
        self.own: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        pairs = [*zip(func._schema.arguments, args, strict=False)]
        pairs += [(a, kwargs[a.name]) for a in func._schema.arguments if a.name in kwargs]
        for argument, given in pairs:
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(tree_leaves(given))
        found = func(*args, **kwargs)
        # What returns its arguments, or views of them, has no place of its own.
        fresh = all(r.alias_info is None for r in func._schema.returns)
        places = [x for x in tree_leaves(found) if isinstance(x, Tensor)] if fresh else []
        self.own |= {x.untyped_storage()._cdata for x in places}
        changes = func._schema.is_mutable
        if changes or places:
            self.calls.append((func, args, kwargs, places))
        return found

    def _keep(self, tensors: list[Tensor]) -> None:
        """Remember what is in memory that is not the recording's."""
        for x in tensors:
            storage = x.untyped_storage()
            if storage._cdata not in self.own and storage._cdata not in self.before:
                self.before[storage._cdata] = (storage, storage.clone())
                self.written.append(x)

    def undo(self) -> None:
        """Take back what recording has done: a graph that is recorded is not run."""
        for storage, kept in self.before.values():
            storage.copy_(kept)
        for *_, places in self.calls:
            for x in places:
                x.fill_(math.nan if x.is_floating_point() else 0)

    def replay(self) -> None:
        """Do the same operations on the same memory; versions do not count them."""
        with torch.autograd._unsafe_preserve_version_counter(tuple(self.written)):
            for func, args, kwargs, places in self.calls:
                found = func(*args, **kwargs)
                if places:
                    for x, new in zip(places, tree_leaves(found), strict=True):
                        x.copy_(new)


class Recorder:
    """Records steps on a CPU."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def __call__(self, step: Step, device: torch.device) -> Recording:
        first = step()
        self.recorded += 1
        with NoWaiting(), Tape() as tape:
            left = step()
        tape.undo()

        def replay() -> None:
            self.replayed += 1
            tape.replay()

        return Recording(first, left, replay)


def parameters() -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=rng).requires_grad_() for s in SHAPES]


def build(params: list[Tensor], settings: dict[str, Any], recorder: Recorder | None) -> PSGD:
    """Return an optimizer of two groups."""
    settings = {"fitting": Fitting(gate=0.4), **settings}
    groups = [{"params": params[:3]}, {"params": params[3:], "weight_decay": 0.1}]
    if "weight_decay" in settings:
        del groups[1]["weight_decay"]
    optimizer = PSGD(groups, 0.02, **settings)
    if recorder is not None:
        optimizer._runner = Captured(recorder)
    return optimizer


def run(optimizer: PSGD, params: list[Tensor], steps: range, missing: int = -1) -> list[Any]:
    """Step on gradients and rates that are functions of the step; return the figures."""
    figures = []
    for step in steps:
        rng = torch.Generator().manual_seed(step)
        for p in params:
            size = 10 ** (step % 3)
            p.grad = size * torch.randn(p.shape, generator=rng)
        if step == missing:
            params[1].grad = None
        if step % 11 == 10:
            params[0].grad[0, 0] = math.nan
        for i, group in enumerate(optimizer.param_groups):
            # A number would be a factor of a sum, whose product is not rounded.
            group["lr"] = torch.tensor(0.02 / (1 + step + i), dtype=torch.float64)
            if group["weight_decay"]:
                group["weight_decay"] = 0.1 / (1 + step)
        optimizer.step()
        figures.append(optimizer.metrics())
    return figures


def assert_same_bits(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def outcome(optimizer: PSGD, params: list[Tensor]) -> tuple[Any, Any]:
    return [p.detach() for p in params], optimizer.state_dict()["state"]
