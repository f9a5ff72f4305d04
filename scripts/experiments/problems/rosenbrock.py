"""Rosenbrock's function, `100 (y - x^2)^2 + (1 - x)^2` from (-1, 1), in double precision."""

from collections.abc import Mapping

import torch
from torch import Tensor

from experiments.problem import Problem


class Rosenbrock(Problem):
    """The function of two parameters, without noise; seeds differ in the optimizers' alone."""

    def __init__(self, device: torch.device) -> None:
        start = torch.tensor([-1.0, 1.0], dtype=torch.float64, device=device)
        self._point = start.requires_grad_()
        self.parameters = [self._point]

    def loss(self, step: int) -> Tensor:
        """Return the function's value, the same in every step."""
        x, y = self._point.unbind()
        value: Tensor = 100 * (y - x**2) ** 2 + (1 - x) ** 2
        return value

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Return the value as `loss`."""
        return {"loss": float(self.loss(0))}
