"""How long a step takes: processor time on a CPU, time by the clock on a device."""

import functools
import statistics
import time
from collections.abc import Mapping

import torch

from experiments.problem import Problem
from experiments.training import Method
from psgd_optim.tools.stepping import take_step

_WARMUP = 2


def step_time(problem: Problem, method: Method, steps: int, device: torch.device) -> float:
    """Return the mean time of a step in milliseconds.

    Args:
        problem: Its parameters are changed.
        method: How to step.
        steps: The mean is over, after two others.
        device: Where the problem is.
    """
    optimizer = method.build(problem, method.rates[0], 0)
    spent = []
    for step in range(_WARMUP + steps):
        begin = _now(device)
        loss = functools.partial(problem.loss, step)
        take_step(optimizer, problem.parameters, loss, method.max_norm)
        spent.append(_now(device) - begin)
    return 1e3 * statistics.fmean(spent[_WARMUP:])


def time_figures(
    problem: Problem, method: Method, steps: int, device: torch.device
) -> Mapping[str, float]:
    """Return `step_time` as a figure, `ms`."""
    return {"ms": step_time(problem, method, steps, device)}


def _now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()
