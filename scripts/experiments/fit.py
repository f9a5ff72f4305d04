"""Training outside of a race: for measurements that look into it, or go on with it."""

from collections.abc import Callable

from experiments.problem import Problem
from experiments.training import Method, train


def _nothing(step: int) -> None:
    return


def fit(
    problem: Problem,
    method: Method,
    steps: int,
    seed: int = 0,
    after: Callable[[int], None] = _nothing,
) -> None:
    """Train with a method at the first of its rates.

    Args:
        problem: Its parameters are changed.
        method: How to step.
        steps: How often.
        seed: Of the optimizer.
        after: Called after every step with the number of steps done.
    """
    for done, _ in train(problem, method, method.rates[0], seed, steps):
        after(done)
