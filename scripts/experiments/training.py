"""A race: methods, each at its best of a few learning rates, on the same draws of a problem."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.plan import CONTROLS, RANDOM_SIZE, RANDOM_STEP, Contest
from experiments.problem import Problem, generator
from experiments.results import DIVERGED, FINISHED, Key, Outcome
from psgd_optim.tools.stepping import take_step

MOST_POINTS = 100
"""Of a stored curve."""


def constant(progress: float) -> float:
    """Return a factor of 1."""
    return 1.0


def falling(final: float) -> Callable[[float], float]:
    """Return an exponential from 1 down to a final factor."""
    return lambda progress: final**progress


@dataclass(frozen=True, kw_only=True)
class Method:
    """How one method steps."""

    build: Callable[[Problem, float, int], torch.optim.Optimizer]
    """Makes the optimizer of a problem, with a learning rate and a seed."""
    rates: tuple[float, ...]
    """Learning rates to try, the first the method's own default."""
    max_norm: float = 0.0
    """Largest norm of the gradient; 0 for no clipping."""
    schedule: Callable[[float], float] = constant
    """Factor of the learning rate by progress in [0, 1]."""


def train(
    problem: Problem, method: Method, rate: float, seed: int, steps: int
) -> Iterator[tuple[int, Tensor]]:
    """Train step by step.

    Args:
        problem: Its parameters are changed.
        method: How to step.
        rate: Learning rate, before the schedule.
        seed: Of the optimizer.
        steps: How many.

    Yields:
        The number of steps done, and the loss before the last one, 0-D.
    """
    optimizer = method.build(problem, rate, seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * method.schedule(step / steps)
        loss_of = functools.partial(problem.loss, step)
        yield step + 1, take_step(optimizer, problem.parameters, loss_of, method.max_norm)


@dataclass(frozen=True, kw_only=True)
class Race(Contest):
    """Methods on the same draws of a problem."""

    make: Callable[[str, int, torch.device], Problem]
    """Draws the problem of a case from a seed."""
    methods: Mapping[str, Method]
    evaluate_every: int = 0
    """0 for an evaluation at the end alone."""
    solved: float = -math.inf
    """A target at which a run stops early: its step and `solved` are among its figures."""

    @property
    def rates(self) -> Mapping[str, Sequence[float]]:
        """Those of the methods."""
        return {name: method.rates for name, method in self.methods.items()}

    def run(self, key: Key, device: torch.device) -> Outcome:
        """Train once."""
        problem = self.make(key.case, key.seed, device)
        if key.method in CONTROLS:
            return self._control(problem, key)
        method = self.methods[key.method]
        rate = method.rates[0] if key.rate is None else key.rate
        curve: list[tuple[float, float]] = []
        for done, loss in train(problem, method, rate, key.seed, key.steps):
            is_due = self.evaluate_every and done % self.evaluate_every == 0
            if not is_due and done < key.steps:
                continue
            figures = dict(problem.evaluate())
            if not (math.isfinite(float(loss)) and math.isfinite(figures[self.target])):
                return Outcome(figures={"steps": done}, status=DIVERGED, curve=_thinned(curve))
            curve.append((done, figures[self.target]))
            if figures[self.target] <= self.solved:
                break
        return self._outcome(figures, done, curve)

    def _outcome(
        self, figures: Mapping[str, float], steps: int, curve: Sequence[tuple[float, float]]
    ) -> Outcome:
        more = {"steps": float(steps)}
        if self.solved > -math.inf:
            more["solved"] = float(figures[self.target] <= self.solved)
        return Outcome(figures={**figures, **more}, status=FINISHED, curve=_thinned(curve))

    def _control(self, problem: Problem, key: Key) -> Outcome:
        """Take no step, or the random walk that many random steps come to."""
        if key.method == RANDOM_STEP:
            draw = generator(key.seed, -1)
            with torch.no_grad():
                for p in problem.parameters:
                    noise = torch.randn(p.shape, generator=draw, dtype=p.dtype)
                    p.add_(noise.to(p.device), alpha=RANDOM_SIZE * math.sqrt(key.steps))
        figures = dict(problem.evaluate())
        if not math.isfinite(figures[self.target]):
            return Outcome(figures={}, status=DIVERGED)
        return self._outcome(figures, key.steps, ())


def _thinned(curve: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Return some points of a curve, the last among them, with the digits that a picture shows."""
    kept = list(curve[:: -(-len(curve) // MOST_POINTS) or 1])
    if curve and kept[-1] != curve[-1]:
        kept.append(curve[-1])
    return [(step, float(f"{value:.5g}")) for step, value in kept]
