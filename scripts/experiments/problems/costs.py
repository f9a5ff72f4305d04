"""What steps cost beside those of gradient descent: time, operations, and stored numbers."""

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.problem import Problem
from experiments.training import Method
from psgd_optim.tools.stepping import take_step

Make = Callable[[int, torch.device], Problem]
"""Draws the problem of a seed."""


def step_costs(
    make: Make,
    method: Method,
    baseline: Method,
    period: int,
    repeats: int,
    seed: int,
    device: torch.device,
) -> Mapping[str, float]:
    """Return how many times as much a method's steps cost as a baseline's.

    The two take turns, so that whatever else the machine does slows both.

    Args:
        make: Draws the problem, once for each method.
        method: What is measured.
        baseline: What it is measured by.
        period: Steps that are measured together, such as those from one fit to the next.
        repeats: Of these; the median counts.
        seed: Of the problem.
        device: Where it is.

    Returns:
        `time`, the ratio of processor times, `operations`, that of multiplications in products of
        matrices, and `ms`, the time of one of the method's steps.
    """
    ours, theirs = (_Stepper(make(seed, device), each) for each in (method, baseline))
    for stepper in (ours, theirs):  # what is made at the first step counts for none
        stepper.seconds(period)
    pairs = [(ours.seconds(period), theirs.seconds(period)) for _ in range(repeats)]
    mine, other = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {
        "time": mine / other,
        "operations": ours.operations(period) / theirs.operations(period),
        "ms": 1e3 * mine / period,
    }


class _Stepper:
    def __init__(self, problem: Problem, method: Method) -> None:
        self._problem = problem
        self._optimizer = method.build(problem, method.rates[0], 0)
        self._steps = itertools.count()

    def seconds(self, steps: int) -> float:
        """Take steps, and return their processor time."""
        begin = time.process_time()
        for _ in range(steps):
            loss = functools.partial(self._problem.loss, next(self._steps))
            take_step(self._optimizer, self._problem.parameters, loss, 0.0)
        return time.process_time() - begin

    def operations(self, steps: int) -> int:
        """Take steps, and return their operations in products of matrices."""
        with FlopCounterMode(display=False) as counter:
            self.seconds(steps)
        return int(counter.get_total_flops())

    def stored(self) -> int:
        """Return how many numbers the optimizer keeps."""
        states = self._optimizer.state.values()
        return sum(x.numel() for state in states for x in state.values())


def layer_costs(
    make: Make,
    method: Method,
    expected: tuple[int, int],
    seed: int,
    device: torch.device,
) -> Mapping[str, float]:
    """Return what a method stores and computes by what a paper's formulas say.

    Args:
        make: Draws the problem.
        method: What is counted.
        expected: Numbers stored, and operations of a step, two per multiplication.
        seed: Of the problem.
        device: Where it is.

    Returns:
        `storage` and `operations`, counted by expected; `numbers` that are stored, in millions.
    """
    stepper = _Stepper(make(seed, device), method)
    stepper.seconds(21)  # KFAC makes inverses in all of the first 20, and then in one of 20
    stored = stepper.stored()
    return {
        "storage": stored / expected[0],
        "operations": stepper.operations(1) / expected[1],
        "numbers": stored / 1e6,
    }
