"""Losses of a model against targets drawn from its own distribution, for Fisher matrices.

Each takes the model's outputs (m, ...) with their graph and a generator, and returns the mean over
samples of the negative logarithm of the likelihood, but for a constant. Outputs that are not finite
give a loss that is not, and no error from the generator.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from psgd_optim.noise import normal_like
from psgd_optim.types import InputError

SampledLoss = Callable[[Tensor, torch.Generator], Tensor]
"""The mean loss of outputs (m, ...) against targets that it draws."""


def bernoulli(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Return the loss of independent binary targets, summed over a sample's features."""
    chances = logits.detach().sigmoid().nan_to_num(0.5)
    targets = torch.bernoulli(chances, generator=generator)
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return loss / len(logits)


def normal(means: Tensor, generator: torch.Generator) -> Tensor:
    """Return the loss of normal targets of variance 1, half the squared errors of a sample."""
    targets = means.detach() + normal_like(means, generator)
    return 0.5 * (means - targets).square().sum() / len(means)


def categorical(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Return the cross entropy of one class per sample.

    Args:
        logits: (m, classes).
        generator: Draws the classes.

    Raises:
        InputError: If the logits have more axes or fewer.
    """
    if logits.ndim != 2:
        raise InputError(
            f"Got logits of shape {tuple(logits.shape)}; give (samples, classes): for several "
            "classes per sample, write a sampled loss that sums over them."
        )
    chances = logits.detach().softmax(dim=1).nan_to_num(1.0)
    targets = torch.multinomial(chances, 1, generator=generator)
    return F.cross_entropy(logits, targets.squeeze(1))
