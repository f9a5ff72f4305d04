"""The two networks of PPO: a Gaussian policy and a value function.

Every layer is one matrix, the bias being its last column: a preconditioner then sees 3 parameters
of a 3-layer network instead of 6. Shape legend: `B` samples, `o` observations, `a` actions.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

Float32Array = NDArray[np.float32]


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


class Actor(nn.Module):
    """A normal distribution per action component whose deviation does not depend on the state.

    Args:
        sizes: Observations, hidden widths, actions.
        log_std: At the start.
        log_std_bounds: Smallest and largest log-std.
        generator: Draws the start.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        log_std: float,
        log_std_bounds: tuple[float, float],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        # A nearly zero mean, so that the first actions are the noise alone, in every state.
        self.layers = _layers(sizes, 0.01, generator)
        self.log_std = nn.Parameter(torch.full((sizes[-1],), log_std))  # (a,)
        self._bounds = log_std_bounds

    def forward(self, observation: Tensor) -> Tensor:
        """Return the mean action.

        Args:
            observation: (B, o), normalised.

        Returns:
            (B, a).
        """
        return _run(self.layers, observation)

    @torch.no_grad()
    def bound_log_std_(self) -> None:
        """Put the log-std back within its bounds; called after every step.

        Clamping in `forward` instead would cut the gradient off outside the bounds, and an
        optimizer with momentum steps outside.
        """
        self.log_std.clamp_(*self._bounds)


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

    At 8 rows a torch forward is nearly all overhead. The means agree with the actor's to float32
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
        self.std: Float32Array = np.exp(actor.log_std.detach().cpu().numpy())

    def mean(self, observation: Float32Array) -> Float32Array:
        """Return the mean action.

        Args:
            observation: (B, o), normalised.

        Returns:
            (B, a).
        """
        *hidden, (weight, bias) = self._weights
        x = observation
        for w, b in hidden:
            x = np.tanh(x @ w + b)
        return x @ weight + bias
