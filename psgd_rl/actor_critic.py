"""The two networks of PPO: a policy and a value function.

Every layer is one matrix, the bias being its last column: a preconditioner then sees 3 parameters
of a 3-layer network instead of 6. Shape legend: `B` samples, `o` observations, `a` action
components, `k` what a network gives per sample.
"""

import abc
import math
from collections.abc import Sequence
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psgd_rl.distributions import (
    ActionArray,
    Categorical,
    CategoricalSampler,
    Distribution,
    Float32Array,
    Gaussian,
    GaussianSampler,
    Sampler,
)


class AffineLayer(nn.Module):
    """`x -> W [x, 1]` with an orthogonal start and a zero bias.

    Args:
        inputs: Length of `x`.
        outputs: Length of the result.
        gain: Scale of the orthogonal start.
        generator: Draws the start.
    """

    def __init__(self, inputs: int, outputs: int, gain: float, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs + 1))  # (outputs, inputs + 1)
        nn.init.orthogonal_(self.weight[:, :-1], gain, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: (B, inputs).

        Returns:
            (B, outputs).
        """
        return F.linear(x, self.weight[:, :-1], self.weight[:, -1])


def _layers(sizes: Sequence[int], last_gain: float, generator: torch.Generator) -> nn.ModuleList:
    """Build layers of the given widths; sqrt(2) is the gain that keeps tanh units in range."""
    gains = [math.sqrt(2)] * (len(sizes) - 2) + [last_gain]
    pairs = zip(sizes[:-1], sizes[1:], gains, strict=True)
    return nn.ModuleList(AffineLayer(i, o, gain, generator) for i, o, gain in pairs)


def _run(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """Apply layers with tanh between them."""
    *hidden, last = layers
    for layer in hidden:
        x = torch.tanh(layer(x))
    result: Tensor = last(x)
    return result


class Actor(nn.Module, abc.ABC):
    """The network of a policy: parameters of a distribution over actions for every observation.

    Args:
        sizes: Observations, hidden widths, what the distribution takes.
        generator: Draws the start.
    """

    is_discrete: ClassVar[bool]
    """Whether its actions are numbered, not continuous."""

    def __init__(self, sizes: Sequence[int], *, generator: torch.Generator) -> None:
        super().__init__()
        # Nearly zero outputs, so that the first actions hardly depend on the state.
        self.layers = _layers(sizes, 0.01, generator)

    def forward(self, observation: Tensor) -> Tensor:
        """Return the means or logits.

        Args:
            observation: (B, o), normalised.

        Returns:
            (B, k).
        """
        return _run(self.layers, observation)

    @abc.abstractmethod
    def distribution(self, output: Tensor) -> Distribution:
        """Return the distribution of what `forward` returned."""

    @abc.abstractmethod
    def sampler(self) -> Sampler:
        """Return what draws actions in numpy, as the parameters now are."""

    def bound_(self) -> None:
        """Put parameters back within their bounds; called after every step."""


@final
class GaussianActor(Actor):
    """A normal distribution per action component whose deviation does not depend on the state.

    Args:
        sizes: Observations, hidden widths, action components.
        log_std: At the start.
        log_std_bounds: Smallest and largest log-std.
        generator: Draws the start.
    """

    is_discrete = False

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        log_std: float,
        log_std_bounds: tuple[float, float],
        generator: torch.Generator,
    ) -> None:
        super().__init__(sizes, generator=generator)
        self.log_std = nn.Parameter(torch.full((sizes[-1],), log_std))  # (a,)
        self._bounds = log_std_bounds

    def distribution(self, output: Tensor) -> Gaussian:
        """Return the distribution with the means (B, a)."""
        return Gaussian(mean=output, log_std=self.log_std)

    def sampler(self) -> GaussianSampler:
        """Return what draws actions in numpy."""
        return GaussianSampler(np.exp(self.log_std.detach().cpu().numpy()))

    @torch.no_grad()
    def bound_(self) -> None:
        """Put the log-std back within its bounds.

        Clamping in `distribution` instead would cut the gradient off outside the bounds, and an
        optimizer with momentum steps outside.
        """
        self.log_std.clamp_(*self._bounds)


@final
class CategoricalActor(Actor):
    """A probability for each of some numbered actions.

    Args:
        sizes: Observations, hidden widths, actions.
        generator: Draws the start.
    """

    is_discrete = True

    def distribution(self, output: Tensor) -> Categorical:
        """Return the distribution with the logits (B, k)."""
        return Categorical(logits=output)

    def sampler(self) -> CategoricalSampler:
        """Return what draws actions in numpy."""
        return CategoricalSampler(len(self.layers[-1].get_parameter("weight")))


class Critic(nn.Module):
    """The value of a state.

    Args:
        sizes: Observations, hidden widths, 1.
        generator: Draws the start.
    """

    def __init__(self, sizes: Sequence[int], *, generator: torch.Generator) -> None:
        super().__init__()
        self.layers = _layers(sizes, 1.0, generator)

    def forward(self, observation: Tensor) -> Tensor:
        """Return the value.

        Args:
            observation: (B, o), normalised.

        Returns:
            (B,).
        """
        return _run(self.layers, observation).squeeze(-1)


class ActingPolicy:
    """A snapshot of an actor in numpy, for the few rows that acting asks for at a time.

    At 8 rows a torch forward is nearly all overhead. The outputs agree with the actor's to float32
    rounding; log-probabilities are always computed by the actor itself.

    Args:
        actor: The network; its current weights are copied.
    """

    def __init__(self, actor: Actor) -> None:
        self._weights: list[tuple[Float32Array, Float32Array]] = []
        for layer in actor.layers:
            weight = layer.get_parameter("weight").detach().cpu().numpy()
            # Transposed once here instead of in every product.
            self._weights.append((np.ascontiguousarray(weight[:, :-1].T), weight[:, -1].copy()))
        self._sampler = actor.sampler()

    def noise(self, generator: np.random.Generator, shape: Sequence[int]) -> Float32Array:
        """Return all that is random in so many actions, drawn at once, (*shape, k)."""
        return self._sampler.noise(generator, shape)

    def act(self, observation: Float32Array, noise: Float32Array) -> ActionArray:
        """Draw actions.

        Args:
            observation: (B, o), normalised.
            noise: (B, k), from `noise`.

        Returns:
            (B, a), not clipped, or (B,).
        """
        return self._sampler.draw(self._output(observation), noise)

    def best(self, observation: Float32Array) -> ActionArray:
        """Return the likeliest actions.

        Args:
            observation: (B, o), normalised.

        Returns:
            (B, a), not clipped, or (B,).
        """
        return self._sampler.best(self._output(observation))

    def _output(self, observation: Float32Array) -> Float32Array:
        """Return what `Actor.forward` returns, (B, k)."""
        *hidden, (weight, bias) = self._weights
        x = observation
        for w, b in hidden:
            x = np.tanh(x @ w + b)
        return x @ weight + bias
