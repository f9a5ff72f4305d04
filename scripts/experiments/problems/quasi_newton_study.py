"""What S4 says of its quasi-Newton methods beside their races: pairs, robustness, convergence."""

import functools
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from experiments.problem import Problem, generator
from experiments.problems.autoencoding import Autoencoding
from experiments.problems.batches import Batches
from experiments.problems.images import seeded
from experiments.training import Method
from psgd_optim.peers import KBFGS
from psgd_optim.peers.quasi_newton import InverseHessian
from psgd_optim.tools.stepping import take_step

Make = Callable[[int, torch.device], Autoencoding]
"""Draws the problem of a seed."""


def damped_pairs(
    make: Make, method: Method, steps: int, seed: int, device: torch.device
) -> Mapping[str, float]:
    """Return which shares of the damped pairs are within the bounds of the theory.

    Returns:
        `within` the bound `y'Hy / s'y <= 1 / mu_1`, and `within_twice` it.

    Source: S4, section 3, where the bound is printed illegibly.
    """
    problem = make(seed, device)
    optimizer = method.build(problem, method.rates[0], seed)
    if not isinstance(optimizer, KBFGS):
        raise TypeError(f"Got {optimizer}; give K-BFGS or K-BFGS(L).")
    for step in range(steps):
        take_step(optimizer, problem.parameters, functools.partial(problem.loss, step), 0.0)
    shares = optimizer.metrics()
    return {
        "within": float(shares["pairs_within_bound"]),
        "within_twice": float(shares["pairs_within_twice_bound"]),
        "loss": problem.evaluate()["loss"],
    }


class TanhRegression(Problem):
    """A small tanh network that is to do what another one does, but for noise.

    Args:
        seed: Of the start, the data and the batches.
        device: Where to train.
        count: Number of examples.
        batch_size: Of the mini-batches.
    """

    _SIZES = (20, 16, 8, 1)

    def __init__(
        self, seed: int, device: torch.device, count: int = 500, batch_size: int = 50
    ) -> None:
        with seeded(seed):
            self.model: nn.Module = self._network().to(device)
            teacher = self._network()
        self.parameters = list(self.model.parameters())
        draw = generator(seed)
        inputs = torch.randn(count, self._SIZES[0], generator=draw, dtype=torch.float64)
        noise = torch.randn(count, 1, generator=draw, dtype=torch.float64)
        with torch.no_grad():
            self._targets = (teacher(inputs) + 0.1 * noise).to(device)
        self._inputs = inputs.to(device)
        self.batches = Batches(count, batch_size, seed)

    def loss(self, step: int) -> Tensor:
        """Return the mean of half the squared errors of a step's batch."""
        return self._error(self.batches.indices(step).to(self._inputs.device))

    def evaluate(self) -> Mapping[str, float]:
        """Return the `loss` of all examples and the square of its `gradient`'s norm."""
        loss = self._error(slice(None))
        grads = torch.autograd.grad(loss, self.parameters)
        squared = sum(float(g.square().sum()) for g in grads)
        return {"loss": float(loss.detach()), "gradient": squared}

    def _error(self, rows: Tensor | slice) -> Tensor:
        away: Tensor = self.model(self._inputs[rows]) - self._targets[rows]
        return 0.5 * away.square().mean()

    def _network(self) -> nn.Module:
        a, b, c, d = self._SIZES
        layers = (nn.Linear(a, b), nn.Tanh(), nn.Linear(b, c), nn.Tanh(), nn.Linear(c, d))
        return nn.Sequential(*layers).double()


def gradient_decay(
    inverse: InverseHessian, decay: float, steps: int, seed: int, device: torch.device
) -> Mapping[str, float]:
    """Return how the least squared gradient so far falls, with steps of size `0.3 k^-decay`.

    Returns:
        `slope`, of its logarithm by that of the step from a tenth of the steps to all of them;
        `early` and `late`, its values there.

    Source: S4, Theorem 2: at most `-(1 - decay)`. Deviation: as `KBFGS` has it, pairs that break
    the bounds are damped and taken, where Algorithm 5 leaves them out.
    """
    problem = TanhRegression(seed, device)
    optimizer = KBFGS(problem.model, 0.3, damping=0.3, inverse=inverse)
    least, early = math.inf, math.nan
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.3 * (step + 1) ** -decay
        take_step(optimizer, problem.parameters, functools.partial(problem.loss, step), 0.0)
        if (step + 1) % (steps // 50) == 0:
            least = min(least, problem.evaluate()["gradient"])
        if step + 1 == steps // 10:
            early = least
    return {"slope": math.log(least / early) / math.log(10), "early": early, "late": least}
