"""Around one optimizer step: its learning rate, its attention kernel, whether it went well."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from psgd_optim.tools.stepping import needs_closure


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


def second_derivatives(optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
    """Return the context of a step: the one attention kernel that an optimizer can twice derive.

    Args:
        optimizer: Any; one that steps from gradients leaves the choice of the kernel to torch.

    Returns:
        A context manager.
    """
    return sdpa_kernel(SDPBackend.MATH) if needs_closure(optimizer) else nullcontext()


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
