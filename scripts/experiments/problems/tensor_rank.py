"""The decomposition of a tensor of random numbers into a sum of a few outer products."""

from collections.abc import Mapping

import torch
from torch import Tensor

from experiments.problem import Problem, generator

SIZES = (10, 20, 50)
"""Of the tensor's axes."""
_PENALTY = 1e-3
"""Weight of the sum of the factors' moduli."""


class TensorRank(Problem):
    """Factors (rank, size) of each axis, so that `T_ijk` is about `sum_r x_ri y_rj z_rk`.

    Args:
        seed: Of the tensor, uniform in [0, 1), and of the factors' normal start.
        device: Where to put both.
        rank: How many outer products.

    Source: the demonstration in the package of S0.
    """

    def __init__(self, seed: int, device: torch.device, rank: int = 5) -> None:
        draw = generator(seed)
        self._target = torch.rand(SIZES, generator=draw).to(device)
        starts = [torch.randn(rank, size, generator=draw) for size in SIZES]
        self.parameters = [start.to(device).requires_grad_() for start in starts]

    def loss(self, step: int) -> Tensor:
        """Return the squared error with the penalty, 0-D, the same in every step."""
        penalty = torch.stack([p.abs().sum() for p in self.parameters]).sum()
        return self._squared_error() + _PENALTY * penalty

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Return `loss`, and `share`, the squared error by the sum of squares around the mean.

        A share of 1 is what a constant has, so that a rank of 1 is enough for it.
        """
        spread = (self._target - self._target.mean()).square().sum()
        return {"loss": float(self.loss(0)), "share": float(self._squared_error() / spread)}

    def _squared_error(self) -> Tensor:
        found = torch.einsum("ri,rj,rk->ijk", *self.parameters)
        return (self._target - found).square().sum()
