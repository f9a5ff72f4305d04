"""What a policy draws its actions from: in torch for learning, in numpy for acting.

Shape legend: `B` samples, `a` action components, `k` numbered actions.
"""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Float32Array = NDArray[np.float32]
ActionArray = NDArray[Any]
"""Float32 where actions are continuous, int64 where they are numbered."""


class Distribution(abc.ABC):
    """A distribution over actions for each of `B` samples."""

    @abc.abstractmethod
    def log_probability(self, action: Tensor) -> Tensor:
        """Return the log density or probability of actions, (B,), in nats."""

    @abc.abstractmethod
    def entropy(self) -> Tensor:
        """Return the entropy in nats: (B,), or 0-D where it is the same for all samples."""

    @abc.abstractmethod
    def kl(self, new: Self) -> Tensor:
        """Return KL(self || new), (B,), in nats."""

    @abc.abstractmethod
    def detach(self) -> Self:
        """Return the same distribution without its graph."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Gaussian(Distribution):
    """Independent normal distributions whose deviation does not depend on the state.

    Args:
        mean: (B, a).
        log_std: (a,).
    """

    mean: Tensor
    log_std: Tensor

    def log_probability(self, action: Tensor) -> Tensor:
        """Return the log density of actions (B, a), before any clipping to bounds, as (B,)."""
        z = (action - self.mean) * torch.exp(-self.log_std)
        return self.log_density(z.square())

    def log_density(self, squares: Tensor) -> Tensor:
        """Return the log density, (B,), of the squares (B, a) of standardised actions."""
        # log N = -z^2 / 2 - log std - log(2 pi) / 2, summed over the components
        constant = 0.5 * math.log(2 * math.pi) * self.mean.shape[-1]
        return -0.5 * squares.sum(-1) - self.log_std.sum() - constant

    def entropy(self) -> Tensor:
        """Return the entropy, 0-D."""
        return self.log_std.sum() + 0.5 * self.log_std.numel() * math.log(2 * math.pi * math.e)

    def kl(self, new: "Gaussian") -> Tensor:
        """Return KL(self || new), (B,)."""
        # log(s'/s) + (s^2 + (m - m')^2) / (2 s'^2) - 1/2, summed over the components
        growth = new.log_std - self.log_std
        moved = (self.mean - new.mean) * torch.exp(-new.log_std)
        return (growth + 0.5 * (torch.exp(-2 * growth) + moved.square()) - 0.5).sum(-1)

    def detach(self) -> "Gaussian":
        """Return the same without the graphs of mean and log-std."""
        return Gaussian(mean=self.mean.detach(), log_std=self.log_std.detach())


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Categorical(Distribution):
    """One of `k` actions.

    Args:
        logits: (B, k), log-probabilities but for a constant of each row.
    """

    logits: Tensor

    def log_probability(self, action: Tensor) -> Tensor:
        """Return the log probability of actions (B,), int64, as (B,)."""
        return self.logits.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Return the entropy, (B,)."""
        log_p = self.logits.log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)

    def kl(self, new: "Categorical") -> Tensor:
        """Return KL(self || new), (B,)."""
        log_p = self.logits.log_softmax(-1)
        return (log_p.exp() * (log_p - new.logits.log_softmax(-1))).sum(-1)

    def detach(self) -> "Categorical":
        """Return the same without the graph of the logits."""
        return Categorical(logits=self.logits.detach())


class Sampler(abc.ABC):
    """Draws actions in numpy, from noise that is drawn ahead for many steps."""

    @abc.abstractmethod
    def noise(self, generator: np.random.Generator, shape: Sequence[int]) -> Float32Array:
        """Return all that is random in so many actions, (*shape, any)."""

    @abc.abstractmethod
    def draw(self, output: Float32Array, noise: Float32Array) -> ActionArray:
        """Return actions drawn with the noise.

        Args:
            output: (B, any), what the actor's network gives.
            noise: Of the same shape.

        Returns:
            (B, a) or (B,).
        """

    @abc.abstractmethod
    def best(self, output: Float32Array) -> ActionArray:
        """Return the likeliest actions, (B, a) or (B,)."""


@final
class GaussianSampler(Sampler):
    """Draws from `Gaussian`.

    Args:
        std: (a,).
    """

    def __init__(self, std: Float32Array) -> None:
        self._std = std

    def noise(self, generator: np.random.Generator, shape: Sequence[int]) -> Float32Array:
        """Return deviations from the mean, (*shape, a)."""
        noise = generator.standard_normal((*shape, len(self._std)), dtype=np.float32)
        noise *= self._std
        return noise

    def draw(self, output: Float32Array, noise: Float32Array) -> Float32Array:
        """Return the mean plus the noise."""
        return output + noise

    def best(self, output: Float32Array) -> Float32Array:
        """Return the mean."""
        return output


@final
class CategoricalSampler(Sampler):
    """Draws from `Categorical`.

    Args:
        count: `k`.
    """

    def __init__(self, count: int) -> None:
        self._count = count

    def noise(self, generator: np.random.Generator, shape: Sequence[int]) -> Float32Array:
        """Return Gumbel noise, (*shape, k)."""
        return generator.gumbel(size=(*shape, self._count)).astype(np.float32)

    def draw(self, output: Float32Array, noise: Float32Array) -> ActionArray:
        """Return where logits plus Gumbel noise are largest, which has their probabilities."""
        return self.best(output + noise)

    def best(self, output: Float32Array) -> ActionArray:
        """Return where the logits are largest."""
        likeliest: ActionArray = output.argmax(axis=-1)
        return likeliest
