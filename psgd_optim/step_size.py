"""How far one update moves a factor: the curvature bound that divides the preconditioner's step."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LipschitzEMA:
    """Divides the step by a slowly forgotten bound of the criterion's curvature.

    `L <- max(beta L + (1 - beta) l, l)` rises at once with the bound `l` of the current sample
    and falls slowly, so that a step `rate / L` is stable for any `rate` below 1.

    Args:
        beta: How much of the old value one update keeps, in [0, 1).

    Raises:
        ValueError: If `beta` is outside [0, 1).

    Source: design formulas 8.0.
    """

    beta: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(f"LipschitzEMA got beta = {self.beta}; give a number in [0, 1).")

    def grow(self, lipschitz: Tensor, bound: Tensor) -> Tensor:
        """Return the new constant.

        Args:
            lipschitz: (B, ...), the constant so far, 0 at the start.
            bound: (B, ...), the curvature bound of the current sample.

        Returns:
            (B, ...), in the dtype of `lipschitz`, at least `bound`.
        """
        bound = bound.to(lipschitz.dtype)
        return torch.maximum(self.beta * lipschitz + (1 - self.beta) * bound, bound)
