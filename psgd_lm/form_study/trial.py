"""What a measurement is made of: problems, their candidates, and one training run."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from psgd_lm.schedules import Cosine
from psgd_optim.tools.stepping import needs_closure

Optimizers = list[torch.optim.Optimizer]
"""What trains a model together, each its own part of the parameters."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A model to train on a stream of batches, both decided by one seed."""

    model: nn.Module
    loss: Callable[[int], Tensor]
    """Returns the loss of the batch of a step."""
    evaluate: Callable[[], float]
    """Returns the loss on fixed data that no step sees."""


def unchanged(model: nn.Module) -> nn.Module:
    """Return the model as it is."""
    return model


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to train: optimizers, and what they need the model to be.

    Args:
        name: Its name in tables.
        build: Makes the optimizers from the model, the learning rate, and the probability with
            which a step fits the preconditioner.
        prepare: Changes the model, but neither its outputs nor what it can represent.
        lrs: Learning rates to choose from, instead of the problem's.
    """

    name: str
    build: Callable[[nn.Module, float, float], Optimizers]
    prepare: Callable[[nn.Module], nn.Module] = unchanged
    lrs: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A fixed task with a budget, and who competes in it.

    Args:
        about: One line on the task.
        steps: Length of a run.
        lrs: Learning rates of every candidate without its own.
        start: Makes the trial of a seed, with the model as a candidate prepares it.
        candidates: The first one is what others are measured against.
    """

    about: str
    steps: int
    lrs: tuple[float, ...]
    start: Callable[[int, Callable[[nn.Module], nn.Module]], Trial]
    candidates: tuple[Candidate, ...]


def advance(optimizers: Optimizers, loss: Callable[[], Tensor]) -> None:
    """Take one step with all optimizers, from gradients or from a closure."""
    if needs_closure(optimizers[0]):
        optimizers[0].step(loss)  # type: ignore[arg-type]  # torch types it as a float
        return
    loss().backward()  # type: ignore[no-untyped-call]
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def train(trial: Trial, optimizers: Optimizers, steps: int) -> float:
    """Train with a short warm-up and half a cosine, and evaluate.

    Args:
        trial: What to train.
        optimizers: Whose learning rates are the largest of the run.
        steps: Length of the run.

    Returns:
        The loss at the end; infinite if it is not finite.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    full = [group["lr"] for group in groups]
    schedule = Cosine(warmup=steps // 20, final=0.1)
    for step in range(steps):
        factor = schedule.factor(step, steps, ())
        for group, lr in zip(groups, full, strict=True):
            group["lr"] = factor * lr
        advance(optimizers, partial(trial.loss, step))
    loss = trial.evaluate()
    return loss if math.isfinite(loss) else math.inf


def state_share(optimizers: Optimizers) -> float:
    """Return the bytes of optimizer state per byte of parameter."""
    params = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    return sum(map(_bytes, _state(optimizers))) / sum(map(_bytes, params))


def _state(optimizers: Optimizers) -> Iterator[Tensor]:
    for optimizer in optimizers:
        for entries in optimizer.state.values():
            yield from (x for x in entries.values() if isinstance(x, Tensor))


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()
