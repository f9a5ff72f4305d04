"""Exact saving and loading: state goes back into the stacks with the dtype it was saved in.

`torch.optim.Optimizer.load_state_dict` casts floating-point state to the parameter's dtype,
which rounds single-precision state of bfloat16 parameters; the saved tensors are copied instead.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from psgd_optim.blocks import Block
from psgd_optim.types import InputError, State

CLOCK = "clock"
"""State entry of the first parameter: (2,) int64 on the CPU, the random seed and the step."""

STACK = "stack"
"""State entry of every row: 0-D int64 on the CPU, the first of the parameters that it was arranged
with."""


def saved_rows(
    state_dict: Mapping[str, Any], params: Iterable[Tensor]
) -> dict[Tensor, dict[str, Tensor]]:
    """Return the saved state of each parameter that has one, with the tensors as they were saved.

    Args:
        state_dict: From `PSGD.state_dict`.
        params: The optimizer's parameters, in the order of its groups.

    Returns:
        State by name for each parameter.
    """
    indices = (index for group in state_dict["param_groups"] for index in group["params"])
    state = state_dict["state"]
    return {p: state[i] for i, p in zip(indices, params, strict=False) if i in state}


def setting_names(optimizer: torch.optim.Optimizer) -> set[str]:
    """Return the names of an optimizer's settings, without the one that torch adds to copies."""
    return optimizer.defaults.keys() - {"differentiable"}


def check_entries(
    owner: str, param: Tensor, found: Mapping[str, object], expected: Mapping[str, Tensor]
) -> None:
    """Refuse saved state of other names, shapes or dtypes than a parameter's.

    Args:
        owner: The optimizer, for the message.
        param: The parameter.
        found: Its saved state.
        expected: Tensors of the right names, shapes and dtypes; their numbers do not count.

    Raises:
        InputError: If it is something else.
    """
    if not all(isinstance(x, Tensor) for x in found.values()):
        told = {name: type(x).__name__ for name, x in found.items()}
    else:
        told = _layout({name: x for name, x in found.items() if isinstance(x, Tensor)})
    if told != _layout(expected):
        raise InputError(
            f"Got saved state {told} for a parameter of shape {tuple(param.shape)}; give what "
            f"{owner}.state_dict() returned for it, {_layout(expected)}."
        )


def load_exactly(
    optimizer: torch.optim.Optimizer,
    load: Callable[[dict[str, Any]], None],
    state_dict: dict[str, Any],
    read: Callable[[Mapping[str, Any]], Mapping[Tensor, State]],
) -> None:
    """Load a state dict with copies of its tensors in the dtypes they were saved in.

    Args:
        optimizer: Whose state it becomes.
        load: What torch loads with, `super().load_state_dict` of the optimizer.
        state_dict: What was saved.
        read: Returns the state by parameter, and raises, before anything has changed, if it is of
            another optimizer.
    """
    found: list[Mapping[Tensor, State]] = []

    def take(_: torch.optim.Optimizer, hooked: dict[str, Any]) -> None:
        found.append(read(hooked))

    # Last among the hooks, so that it sees what others have made of the state.
    handle = optimizer.register_load_state_dict_pre_hook(take)
    try:
        load(state_dict)
    finally:
        handle.remove()
    for p, saved in found[0].items():  # torch has cast them to the parameter's dtype
        optimizer.state[p] = {name: x.to(p.device, copy=True) for name, x in saved.items()}


def restore_rows(block: Block, saved: Mapping[Tensor, Mapping[str, Tensor]]) -> None:
    """Copy saved state into a block's stacks; parameters without saved state keep a fresh one.

    Args:
        block: The block to write to.
        saved: From `saved_rows`.

    Raises:
        ValueError: If saved state does not fit the block's form.
    """
    for param, row in block.entries():
        if param not in saved:
            continue
        theirs = {
            name: x
            for name, x in saved[param].items()
            if name not in (CLOCK, STACK) and name.startswith(block.view.prefix)
        }
        found, expected = _layout(theirs), _layout(row)
        if found != expected:
            raise ValueError(
                f"The saved state of a parameter of shape {tuple(param.shape)} is {found}, this "
                f"optimizer keeps {expected}; build it with the form and momentum it had then."
            )
        for name, x in row.items():
            x.copy_(theirs[name])
    block.wait_for(block.steps == 0)


def _layout(state: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: f"{str(x.dtype)[6:]}{list(x.shape)}" for name, x in sorted(state.items())}


def saved_clock(saved: Mapping[Tensor, Mapping[str, Tensor]]) -> tuple[int, int]:
    """Return the seed and the step of saved state.

    Args:
        saved: From `saved_rows`.

    Returns:
        The random seed, and the steps done.

    Raises:
        ValueError: If the state has no clock.
    """
    for state in saved.values():
        if CLOCK in state:
            seed, step = state[CLOCK].tolist()
            return int(seed), int(step)
    raise ValueError("The saved state has no clock entry; load what PSGD.state_dict() returned.")


def saved_stacks(saved: Mapping[Tensor, Mapping[str, Tensor]]) -> dict[Tensor, int]:
    """Return which stack each parameter was in, so that its noise goes on as it would have.

    Args:
        saved: From `saved_rows`.

    Returns:
        The place of the first parameter that it was arranged with, where the state has one.
    """
    return {p: int(state[STACK]) for p, state in saved.items() if STACK in state}


def clock_tensor(seed: int, step: int) -> Tensor:
    """Return the clock entry."""
    return torch.tensor([seed, step], dtype=torch.int64)
