"""Figures of a step as tensors on the device, so that nothing waits for them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from psgd_optim.linalg import Mask


class StepFigures:
    """What a step leaves to be asked about, as it is; figures are made of it when asked."""

    def __init__(self, norms: Sequence[Tensor], count: int, sound: Sequence[Mask]) -> None:
        """Keep a few numbers for every row.

        Args:
            norms: (B,) for each block, of the updates before they are clipped.
            count: How many numbers there are in the updates.
            sound: Which rows of each block moved.
        """
        self._norms = norms
        self._count = count
        self._sound = sound

    def metrics(self) -> dict[str, Tensor]:
        """Return the figures.

        Returns:
            0-D tensors by name; empty without updates.
        """
        if not self._norms:
            return {}
        device = self._norms[0].device
        norms = torch.cat([norm.to(device, torch.float32) for norm in self._norms])
        skipped = [(~mask).sum().to(device) for mask in self._sound if mask is not None]
        none = torch.zeros((), dtype=torch.int64, device=device)
        return {
            "update_rms": norms.norm() / self._count**0.5,
            "skipped": torch.stack(skipped).sum() if skipped else none,
        }
