"""One optimizer step: its learning rate, its gradient, and whether it went well."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from psgd_optim.types import InputError


def lr_factor(step: int, *, steps: int, warmup: int, final: float) -> float:
    """Return the learning rate of a step as a part of its full value.

    Args:
        step: Steps done before this one.
        steps: Length of the run.
        warmup: Steps of linear growth.
        final: The factor at the last step.

    Returns:
        In (0, 1]: linear growth, then half a cosine.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer differentiates the loss itself, from a closure that returns it."""
    return bool(getattr(optimizer, "needs_closure", False))


def check_clipping(optimizer: torch.optim.Optimizer, grad_clip: float) -> None:
    """Refuse to clip a gradient that only the optimizer sees.

    Args:
        optimizer: Any.
        grad_clip: Largest norm; 0 for no clipping.

    Raises:
        InputError: If the optimizer needs a closure and clipping is on.
    """
    if grad_clip and needs_closure(optimizer):
        raise InputError(
            f"Got grad_clip {grad_clip} with an optimizer that differentiates the loss itself; "
            "give --grad-clip 0 and set the optimizer's own clipping."
        )


def take_step(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    loss_of: Callable[[], Tensor],
    grad_clip: float,
) -> Tensor:
    """Take one step with an optimizer of either kind.

    Args:
        optimizer: Steps from gradients, or from a closure if `needs_closure`.
        model: Holds the parameters.
        loss_of: Returns the loss of this step's batch, always the same batch.
        grad_clip: Largest norm of the gradient; 0 for no clipping.

    Returns:
        0-D, the loss before the step, without its graph.
    """
    if needs_closure(optimizer):
        seen: list[Tensor] = []

        def closure() -> Tensor:
            loss = loss_of()
            seen.append(loss.detach())
            return loss

        # No other attention kernel has second derivatives.
        with sdpa_kernel(SDPBackend.MATH):
            optimizer.step(closure)  # type: ignore[arg-type]  # torch types it as a float
        return seen[0]
    loss = loss_of()
    loss.backward()  # type: ignore[no-untyped-call]
    if grad_clip:
        nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


class FiniteGuard:
    """Remembers the first step with a loss that is not finite, without waiting for the device.

    Args:
        device: Where the losses live.
    """

    def __init__(self, device: torch.device) -> None:
        self._first_bad = torch.zeros((), dtype=torch.int64, device=device)  # 0: none

    def watch(self, loss: Tensor, step: int) -> None:
        """Note the loss of a step.

        Args:
            loss: 0-D.
            step: The step's number, counted from 1.
        """
        is_first = (self._first_bad == 0) & ~torch.isfinite(loss)
        self._first_bad.masked_fill_(is_first, step)

    def first_bad_step(self) -> int:
        """Wait for the device and return the first bad step, or 0."""
        return int(self._first_bad)


def is_finite(model: nn.Module) -> bool:
    """Whether every parameter is finite; waits for the device."""
    return bool(torch.stack([p.detach().isfinite().all() for p in model.parameters()]).all())
