"""The terms of PPO's loss as pure functions of tensors.

Shape legend: `B` samples of a minibatch, `o` observations, `a` action components.
Source: Schulman et al. 2017 (arXiv 1707.06347), equations 7 and 9; the clipped value loss is that
of OpenAI's Baselines.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Minibatch:
    """The samples of one step of both networks.

    Args:
        observation: (B, o), normalised.
        action: (B, a), or (B,) where actions are numbered.
        log_probability: (B,), of the actions under the policy that acted.
        advantage: (B,).
        target: (B,), what the critic shall give.
        value: (B,), what it gave when the targets were made.
    """

    observation: Tensor
    action: Tensor
    log_probability: Tensor
    advantage: Tensor
    target: Tensor
    value: Tensor


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


def clipped_value_loss(value: Tensor, target: Tensor, before: Tensor, clip: float) -> Tensor:
    """Return the value loss without a gain from values that have moved too far.

    Args:
        value: (B,).
        target: (B,).
        before: (B,), the values that movements are counted from.
        clip: Largest useful movement; 0 for no limit.

    Returns:
        Scalar.
    """
    if clip == 0:
        return value_loss(value, target)
    near = before + (value - before).clamp(-clip, clip)
    return 0.5 * torch.maximum((value - target).square(), (near - target).square()).mean()


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
