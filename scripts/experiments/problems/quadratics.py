"""Quadratics whose solution is known: still, with noisy gradients, or with a Hessian that drifts.

`loss(step)` is `1/2 (x - c)' H (x - c) + xi' x`: an indefinite `H` is not drawn, so that the
minimum `c` is what every method should find. Everything is a function of seed and step.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from experiments.problem import Problem
from psgd_optim.noise import noise_generator
from psgd_optim.types import InputError

_REAL = torch.float64
_START, _SOLUTION, _AXES, _ROTATION, _NOISE = range(5)  # streams of a seed


class Quadratic(Problem):
    """A convex quadratic with eigenvalues spread evenly on a logarithmic scale.

    Args:
        seed: Of the start, the solution and the axes.
        device: Where to put the parameters.
        size: Number of parameters `n`, at least 2.
        condition: Largest eigenvalue by the smallest, which is 1; at least 1.

    Raises:
        InputError: If a size is outside its range.
    """

    def __init__(
        self, seed: int, device: torch.device, *, size: int = 20, condition: float = 1e3
    ) -> None:
        if size < 2:
            raise InputError(f"Got size = {size}; give at least 2.")
        if not 1 <= condition < math.inf:
            raise InputError(f"Got condition = {condition}; give a number of at least 1.")
        self._seed = seed
        self._device = device
        self._size = size
        self.solution = self._normal(_SOLUTION, 0, size)
        """(n,), where every step's expected loss has its minimum, 0."""
        self._values = torch.logspace(0, math.log10(condition), size, dtype=_REAL, device=device)
        self._axes: Tensor = torch.linalg.qr(self._normal(_AXES, 0, size, size)).Q
        self._point = self._normal(_START, 0, size).requires_grad_()
        self.parameters = [self._point]

    def hessian(self, step: int) -> Tensor:
        """Return the Hessian (n, n) of a step's loss, symmetric and positive definite."""
        axes = self._axes_at(step)
        hessian: Tensor = (axes * self._values) @ axes.mT
        return hessian

    def loss(self, step: int) -> Tensor:
        """Return the loss of a step, 0-D; called again, the same one."""
        return self._expected(step)

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Return the loss and the squared distance from the solution, without noise.

        The loss is that of step 0's Hessian, so that figures of all steps are in one unit.
        """
        away = self._point - self.solution
        return {"loss": float(self._expected(0)), "distance": float(away.square().sum())}

    def _expected(self, step: int) -> Tensor:
        away = self._point - self.solution
        return 0.5 * torch.dot(away, self.hessian(step) @ away)

    def _axes_at(self, step: int) -> Tensor:
        """Return the eigenvectors (n, n) of a step's Hessian."""
        return self._axes

    def _normal(self, stream: int, step: int, *shape: int) -> Tensor:
        """Return normal numbers that every device gets alike."""
        rng = noise_generator(torch.device("cpu"), self._seed, step, stream)
        return torch.randn(*shape, generator=rng, dtype=_REAL).to(self._device)


class NoisyQuadratic(Quadratic):
    """A quadratic whose gradient has independent normal noise in every step.

    The noise is a linear term of the loss, so that it leaves the Hessian as it is. A preconditioned
    step of size `lr` with `P = H^-1` ends at an expected `|x - c|^2` of about
    `lr / (2 - lr) noise^2 tr(H^-2)`.

    Args:
        seed: As of `Quadratic`.
        device: As of `Quadratic`.
        noise: Standard deviation of every entry of the gradient's noise; at least 0.
        size: As of `Quadratic`.
        condition: As of `Quadratic`.

    Raises:
        InputError: If a number is outside its range.
    """

    def __init__(
        self,
        seed: int,
        device: torch.device,
        *,
        noise: float = 0.1,
        size: int = 20,
        condition: float = 1e3,
    ) -> None:
        if not 0 <= noise < math.inf:
            raise InputError(f"Got noise = {noise}; give a number of at least 0.")
        super().__init__(seed, device, size=size, condition=condition)
        self.noise = noise

    def loss(self, step: int) -> Tensor:
        """Return the loss of a step, with its own noise."""
        xi = self._normal(_NOISE, step, self._size)
        return self._expected(step) + self.noise * xi @ self._point


class DriftingQuadratic(Quadratic):
    """A quadratic whose Hessian turns by the same small rotation in every step.

    Its eigenvalues and its solution stay; its eigenvectors turn in random planes, all of them once
    around in `period` steps, so that a preconditioner of long ago fits no more.

    Args:
        seed: As of `Quadratic`.
        device: As of `Quadratic`.
        period: Steps of a whole turn; positive.
        size: As of `Quadratic`.
        condition: As of `Quadratic`.

    Raises:
        InputError: If a number is outside its range.
    """

    def __init__(
        self,
        seed: int,
        device: torch.device,
        *,
        period: float = 4000.0,
        size: int = 20,
        condition: float = 1e3,
    ) -> None:
        if not period > 0:
            raise InputError(f"Got period = {period}; give a positive number.")
        super().__init__(seed, device, size=size, condition=condition)
        self._period = period
        self._planes: Tensor = torch.linalg.qr(self._normal(_ROTATION, 0, size, size)).Q

    def _axes_at(self, step: int) -> Tensor:
        """Return the axes turned by `2 pi step / period` in the planes of pairs of columns."""
        angle = 2 * math.pi * step / self._period
        turned = self._planes.clone()
        even, odd = self._planes[:, 0 : self._size - 1 : 2], self._planes[:, 1::2]
        turned[:, 0 : self._size - 1 : 2] = math.cos(angle) * even + math.sin(angle) * odd
        turned[:, 1::2] = math.cos(angle) * odd - math.sin(angle) * even
        axes: Tensor = turned @ self._planes.mT @ self._axes
        return axes
