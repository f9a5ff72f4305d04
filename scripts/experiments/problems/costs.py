"""What steps cost, alone or beside those of another method: time, operations, stored numbers.

Time is that of the processor on a CPU, and by the clock on a device.
"""

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

_WARMUP = 2
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
    ours, theirs = (_Stepper(make(seed, device), each, device) for each in (method, baseline))
    for stepper in (ours, theirs):  # what is made at the first step counts for none
        stepper.seconds(period)
    pairs = [(ours.seconds(period), theirs.seconds(period)) for _ in range(repeats)]
    mine, other = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {
        "time": mine / other,
        "operations": ours.operations(period) / theirs.operations(period),
        "ms": 1e3 * mine / period,
    }


def time_figures(
    problem: Problem, method: Method, steps: int, device: torch.device
) -> Mapping[str, float]:
    """Return the mean time of a step in milliseconds, `ms`.

    Args:
        problem: Its parameters are changed.
        method: How to step.
        steps: The mean is over, after two others.
        device: Where the problem is.
    """
    stepper = _Stepper(problem, method, device)
    stepper.seconds(_WARMUP)
    return {"ms": 1e3 * stepper.seconds(steps) / steps}


class _Stepper:
    def __init__(self, problem: Problem, method: Method, device: torch.device) -> None:
        self._problem, self._device, self._max_norm = problem, device, method.max_norm
        self._optimizer = method.build(problem, method.rates[0], 0)
        self._steps = itertools.count()

    def seconds(self, steps: int) -> float:
        """Take steps, and return how long they took."""
        begin = self._now()
        for _ in range(steps):
            loss = functools.partial(self._problem.loss, next(self._steps))
            take_step(self._optimizer, self._problem.parameters, loss, self._max_norm)
        return self._now() - begin

    def _now(self) -> float:
        if self._device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self._device)
        return time.perf_counter()

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
    stepper = _Stepper(make(seed, device), method, device)
    stepper.seconds(21)  # KFAC makes inverses in all of the first 20, and then in one of 20
    stored = stepper.stored()
    return {
        "storage": stored / expected[0],
        "operations": stepper.operations(1) / expected[1],
        "numbers": stored / 1e6,
    }
