"""Training outside of a race: for measurements that look into it, or go on with it."""

import functools
from collections.abc import Callable

import torch

from experiments.problem import Problem
from experiments.training import Method
from psgd_optim.tools.stepping import take_step


def _nothing(step: int) -> None:
    return


def fit(
    problem: Problem,
    method: Method,
    steps: int,
    seed: int = 0,
    after: Callable[[int], None] = _nothing,
    first: int = 0,
) -> None:
    """Train with a method at the first of its rates.

    Args:
        problem: Its parameters are changed.
        method: How to step.
        steps: How often.
        seed: Of the optimizer.
        after: Called after every step with the number of steps done.
        first: The number of the first step, which says what its batch is.
    """
    rate = method.rates[0]
    optimizer: torch.optim.Optimizer = method.build(problem, rate, seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * method.schedule(step / steps)
        loss = functools.partial(problem.loss, first + step)
        take_step(optimizer, problem.parameters, loss, method.max_norm)
        after(step + 1)
