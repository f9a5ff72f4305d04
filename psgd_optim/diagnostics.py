"""Figures of a step as tensors on the device, so that nothing waits for them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def step_metrics(updates: Sequence[Tensor], skipped: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the figures of one step.

    Args:
        updates: The clipped updates, one (B, *shape) per block.
        skipped: How many rows of each block did not move, 0-D.

    Returns:
        0-D tensors by name; empty without updates.
    """
    if not updates:
        return {}
    device = updates[0].device
    norms = [norm.to(device, torch.float32) for norm in torch._foreach_norm(list(updates))]
    count = sum(u.numel() for u in updates)
    return {
        "update_rms": torch.stack(norms).norm() / count**0.5,
        "skipped": torch.stack([s.to(device) for s in skipped]).sum(),
    }
