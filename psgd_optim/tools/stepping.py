"""One step with any optimizer: from gradients, or from a closure for one that needs the loss.

One that is fitted to pairs of its caller's gets them beside the gradients.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from psgd_optim.types import InputError

_AVERAGES = ("exp_avg", "momentum_buffer")
Pair = tuple[Sequence[Tensor], Sequence[Tensor]]
"""Probes `v` and Hessian-vector products `H v`, in the order of the optimizer's parameters."""


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer differentiates the loss itself, from a closure that returns it."""
    return bool(getattr(optimizer, "needs_closure", False))


def takes_pairs(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer is fitted to pairs that only its caller can give."""
    return bool(getattr(optimizer, "takes_pairs", False))


def needs_second_derivatives(optimizer: torch.optim.Optimizer) -> bool:
    """Whether any step of the optimizer differentiates the loss twice."""
    return bool(getattr(optimizer, "differentiates_twice", False))


def differentiates_twice(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the next step differentiates the loss twice, which few fused kernels allow."""
    # Without `fits_next` to say otherwise, every step does what any of them does.
    return needs_second_derivatives(optimizer) and bool(getattr(optimizer, "fits_next", True))


def check_clipping(optimizer: torch.optim.Optimizer, max_norm: float, flag: str) -> None:
    """Refuse to clip a gradient that only the optimizer sees.

    Args:
        optimizer: Any.
        max_norm: Largest norm of the gradient; 0 for no clipping.
        flag: The flag that sets it, for the message.

    Raises:
        InputError: If the optimizer needs a closure and clipping is on.
    """
    if max_norm and needs_closure(optimizer):
        raise InputError(
            f"Got {flag} {max_norm} with an optimizer that differentiates the loss itself; give "
            f"{flag} 0 and set the optimizer's own clipping."
        )


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale gradients, dense or sparse, down to a norm of all of them together.

    Args:
        parameters: On one device, with their gradients.
        max_norm: The largest norm; 0 for no clipping.

    Returns:
        0-D, the norm before.
    """
    values = [_numbers(p) for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(values)
    if max_norm > 0 and values:
        # As torch.nn.utils.clip_grad_norm_, which takes dense gradients alone.
        torch._foreach_mul_(values, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


@torch.no_grad()
def reset_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Empty the gradient averages of an optimizer; all else of its state stays.

    Args:
        optimizer: One with a method of this name, or with averages named as torch names them; any
            other is left alone.
    """
    own = getattr(optimizer, "reset_momentum", None)
    if own is not None:
        own()
        return
    for state in optimizer.state.values():
        for name in _AVERAGES:
            if isinstance(state.get(name), Tensor):
                state[name].zero_()


def _numbers(parameter: Tensor) -> Tensor:
    """Return the numbers that a parameter's gradient is made of, a view."""
    grad = parameter.grad
    if grad is None or not grad.is_sparse:
        return torch.empty(0) if grad is None else grad
    parameter.grad = grad.coalesce()  # else a row may lie there in parts
    return parameter.grad.values()


def take_step(
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[Tensor],
    loss_of: Callable[[], Tensor],
    max_norm: float,
    pair_of: Callable[[], Pair] | None = None,
) -> Tensor:
    """Take one step with an optimizer of any kind.

    Args:
        optimizer: Steps from gradients, or from a closure if `needs_closure`.
        parameters: What the optimizer trains.
        loss_of: Returns the loss of this step's batch, always the same batch.
        max_norm: Largest norm of the gradient; 0 for no clipping.
        pair_of: Returns the pair to fit to; called if the optimizer takes pairs, in the steps that
            fit.

    Returns:
        0-D, the loss before the step, without its graph.
    """
    if needs_closure(optimizer):
        seen: list[Tensor] = []

        def closure() -> Tensor:
            loss = loss_of()
            seen.append(loss.detach())
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]  # torch types it as a float
        return seen[0]
    loss = loss_of()
    loss.backward()  # type: ignore[no-untyped-call]
    step_from_gradients(optimizer, parameters, max_norm, pair_of)
    return loss.detach()


def step_from_gradients(
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[Tensor],
    max_norm: float,
    pair_of: Callable[[], Pair] | None = None,
) -> None:
    """Clip the gradients that are there, take a step, and drop them.

    Args:
        optimizer: Steps from gradients.
        parameters: What it trains.
        max_norm: Largest norm of the gradient; 0 for no clipping.
        pair_of: As in `take_step`.
    """
    if max_norm > 0:
        nn.utils.clip_grad_norm_(parameters, max_norm)
    if pair_of is not None and takes_pairs(optimizer) and getattr(optimizer, "fits_next", True):
        step: Callable[..., object] = optimizer.step  # torch's own knows no pairs
        step(pair=pair_of())
    else:
        optimizer.step()
    optimizer.zero_grad()
