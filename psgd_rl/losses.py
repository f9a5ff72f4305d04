"""The terms of PPO's loss as pure functions of tensors.

Shape legend: `B` samples of a minibatch, `a` action components.
Source: Schulman et al. 2017 (arXiv 1707.06347), equations 7 and 9; the value loss is not clipped.
"""

import math

import torch
from torch import Tensor


def log_probability(mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
    """Return the log density of actions under independent normal distributions.

    Args:
        mean: (B, a).
        log_std: (a,).
        action: (B, a), before any clipping to the environment's bounds.

    Returns:
        (B,), nats.
    """
    z = (action - mean) * torch.exp(-log_std)
    # log N = -z^2 / 2 - log std - log(2 pi) / 2, summed over the components
    constant = 0.5 * math.log(2 * math.pi) * mean.shape[-1]
    return -0.5 * z.square().sum(-1) - log_std.sum() - constant


def entropy(log_std: Tensor) -> Tensor:
    """Return the entropy of independent normal distributions.

    Args:
        log_std: (a,).

    Returns:
        Scalar, nats.
    """
    return log_std.sum() + 0.5 * log_std.numel() * math.log(2 * math.pi * math.e)


def policy_loss(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Return the clipped surrogate, negated.

    Args:
        log_ratio: (B,), log of the new over the old probability of each action.
        advantage: (B,).
        clip: Largest useful deviation of the ratio from 1.

    Returns:
        Scalar, -E[min(r A, clip(r, 1 - clip, 1 + clip) A)].
    """
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio * advantage, clipped * advantage).mean()


def value_loss(value: Tensor, target: Tensor) -> Tensor:
    """Return half the mean squared error of the values.

    Args:
        value: (B,).
        target: (B,), advantage plus the value at collection.

    Returns:
        Scalar.
    """
    return 0.5 * (value - target).square().mean()


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """Return the estimate E[r - 1 - log r] of KL(old || new), which is never negative.

    Args:
        log_ratio: (B,).

    Returns:
        Scalar, nats.
    """
    return (log_ratio.expm1() - log_ratio).mean()


def clip_fraction(log_ratio: Tensor, clip: float) -> Tensor:
    """Return the share of samples whose ratio is outside the clip range.

    Args:
        log_ratio: (B,).
        clip: As in `policy_loss`.

    Returns:
        Scalar in [0, 1].
    """
    return ((log_ratio.exp() - 1).abs() > clip).float().mean()


def explained_variance(value: Tensor, target: Tensor) -> Tensor:
    """Return 1 - Var(target - value) / Var(target): 1 for perfect values, 0 for a constant.

    Args:
        value: (B,).
        target: (B,).

    Returns:
        Scalar.
    """
    return 1 - (target - value).var() / target.var().clamp_min(1e-12)
