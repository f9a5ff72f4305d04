"""Figures of a step as tensors on the device, so that nothing waits for them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from psgd_optim.linalg import Mask
from psgd_optim.updates import Update


def step_metrics(updates: Sequence[Update], sound: Sequence[Mask]) -> dict[str, Tensor]:
    """Return the figures of one step.

    Args:
        updates: The updates before they are clipped, one per block.
        sound: Which rows of each block moved.

    Returns:
        0-D tensors by name; empty without updates.
    """
    if not updates:
        return {}
    device = updates[0].rows.device
    norms = torch.cat([update.norms().to(device, torch.float32) for update in updates])
    count = sum(update.rows.numel() for update in updates)
    skipped = [(~mask).sum().to(device) for mask in sound if mask is not None]
    return {
        "update_rms": norms.norm() / count**0.5,
        "skipped": torch.stack(skipped).sum() if skipped else torch.zeros((), dtype=torch.int64),
    }
