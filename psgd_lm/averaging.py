"""The average of a run's last weights, and when it begins: NT-ASGD, as data.

The mean is taken of the weights after every step from the start on, and stands in for them in
evaluations, samples and the best checkpoint; training itself goes on from the weights.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_swa_multi_avg_fn

from psgd_optim.types import InputError

_average_in_ = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]
"""Moves means of `n` tensors each, in place, to those of `n + 1`."""


@dataclass(frozen=True, kw_only=True)
class AverageConfig:
    """When weights begin to be averaged."""

    start: Literal["never", "non-monotone", "fraction"] = "never"
    """non-monotone: once an evaluation is worse than the best of all but the last ones before
    it; fraction: from a part of the steps on."""
    window: int = 5
    """Evaluations just before it that an evaluation is not compared with, for non-monotone."""
    fraction: float = 0.8
    """Part of the steps after which averaging starts, for fraction."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise InputError(f"Got average.window {self.window}; give --average.window 1 or more.")
        if not 0 <= self.fraction < 1:
            raise InputError(
                f"Got average.fraction {self.fraction}; give --average.fraction in [0, 1)."
            )


def first_averaged_step(
    config: AverageConfig, steps: int, history: Sequence[tuple[int, float]]
) -> int | None:
    """Return the number of steps after which averaging starts.

    Args:
        config: When it does.
        steps: Length of the run.
        history: The evaluations so far: steps done, and validation loss.

    Returns:
        The steps, or `None` while they are not known; more evaluations never change a number.

    Source: the rule of AWD-LSTM's training (arXiv 1708.02182, algorithm 1).
    """
    if config.start == "never":
        return None
    if config.start == "fraction":
        return math.ceil(config.fraction * steps)
    best = math.inf  # of all evaluations but the last ones before this one
    for i, (done, loss) in enumerate(history):
        if i > config.window:
            best = min(best, history[i - config.window - 1][1])
            # A loss that is not a number is worse, too.
            if not loss <= best:
                return done
    return None


class Averaging:
    """The mean of a model's weights from some step on.

    Means are in single precision or better, whatever the weights' dtype.

    Args:
        config: When it starts.
        steps: Length of the run.
    """

    def __init__(self, config: AverageConfig, steps: int) -> None:
        self._config = config
        self._steps = steps
        self._count = 0
        self._means: dict[str, Tensor] = {}

    @property
    def count(self) -> int:
        """Steps whose weights are in the mean; with 0, `swapped` changes nothing."""
        return self._count

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, history: Sequence[tuple[int, float]]) -> None:
        """Take a step's weights into the mean, if averaging has started.

        Args:
            model: After the step.
            step: Steps done, this one included.
            history: The evaluations so far.
        """
        if not self._count:
            first = first_averaged_step(self._config, self._steps, history)
            if first is None or step <= first:
                return
        weights = _weights(model)
        if self._count:
            means = [self._means[name] for name in weights]
            # The function casts by its first argument's dtype: both lists are in that of the mean.
            values = [p.to(mean.dtype) for p, mean in zip(weights.values(), means, strict=True)]
            _average_in_(means, values, self._count)
        else:
            self._means = {name: _precise(p) for name, p in weights.items()}
        self._count += 1

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Put the means in the place of the weights, and afterwards the weights back.

        Args:
            model: The one that is averaged; its weights come back bit for bit.

        Yields:
            Nothing.
        """
        if not self._count:
            yield
            return
        weights = _weights(model)
        kept = {name: p.detach().clone() for name, p in weights.items()}
        # Copied, not exchanged: others hold on to the memory of weights, such as cuDNN.
        _copy_(weights, self._means)
        try:
            yield
        finally:
            _copy_(weights, kept)

    def state_dict(self) -> dict[str, Any]:
        """Return the mean and its count, safe for `torch.load(weights_only=True)`."""
        return {"count": self._count, "means": dict(self._means)}

    def load_state_dict(self, state_dict: dict[str, Any], model: nn.Module) -> None:
        """Load what `state_dict` returned, onto the devices of a model's weights.

        Args:
            state_dict: Of an average of the same model.
            model: The model.

        Raises:
            ValueError: If it is of another model.
        """
        saved: dict[str, Tensor] = state_dict["means"]
        weights = _weights(model)
        shapes = {name: mean.shape for name, mean in saved.items()}
        if saved and shapes != {name: p.shape for name, p in weights.items()}:
            raise ValueError("The saved average is of another model; build the model it is of.")
        self._count = state_dict["count"]
        self._means = {
            name: mean.to(weights[name].device, copy=True) for name, mean in saved.items()
        }


def _weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what is trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _precise(p: Tensor) -> Tensor:
    """Return a copy in single precision or better."""
    return p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)


@torch.no_grad()
def _copy_(weights: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, p in weights.items():
        p.copy_(values[name])
