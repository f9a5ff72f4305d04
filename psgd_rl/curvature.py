"""Curvature of both networks for optimizers that are fitted to it: products `H v`, never `H`.

A network's outputs at its own parameters and at others diverge: policies by KL(old || new), values
by half their mean squared distance. At equal parameters a divergence and its gradient are 0, and
its Hessian is the generalized Gauss-Newton matrix `J^T M J / B`, positive semi-definite: for a
policy the Fisher matrix, whose inverse makes a gradient the natural one, and for values
`J^T J / B`. The Hessian of PPO's own loss is neither, as advantages have both signs.

Shape legend: `B` samples.
Source: Schulman et al. 2015 (arXiv 1502.05477), appendix C; Martens 2020 (arXiv 1412.1193) on
the generalized Gauss-Newton matrix.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from psgd_rl.distributions import Distribution

Pair = tuple[list[Tensor], list[Tensor]]
"""Probes `v` and products `H v`, in the order of an optimizer's parameters."""


def policy_divergence(policy: Distribution) -> Tensor:
    """Return the mean KL(old || new) of a policy from itself: 0-D, nats, 0 but for its Hessian.

    Args:
        policy: With the graph of its parameters, which are the new ones.
    """
    return policy.detach().kl(policy).mean()


def value_divergence(value: Tensor) -> Tensor:
    """Return half the mean squared distance of values from themselves: 0-D, 0 but for its Hessian.

    Args:
        value: (B,), with their graph.
    """
    return 0.5 * (value - value.detach()).square().mean()


def curvature_product(
    divergence: Tensor, params: Sequence[Tensor], probes: Sequence[Tensor]
) -> list[Tensor]:
    """Return the Hessian of a divergence times a vector.

    Invariant: `v^T H v >= 0`.

    Args:
        divergence: 0-D, of `policy_divergence` or `value_divergence`.
        params: Of the network, every one of which the divergence depends on.
        probes: A tensor `v` like each parameter.

    Returns:
        `H v`, one tensor per parameter, without graphs.
    """
    # The gradient is 0, but its derivative is not.
    grads = torch.autograd.grad(divergence, params, create_graph=True)
    return list(torch.autograd.grad(grads, params, probes))


def curvature_pair(
    divergence: Tensor, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> Pair:
    """Return a pair for `PSGD.step(pair=...)`.

    Args:
        divergence: Of the network that the optimizer trains.
        optimizer: Says which parameters there are, in which order.
        generator: Draws the probe, on the CPU, so that it is the same on every device.

    Returns:
        A standard normal probe and its product.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    probes = [torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p in params]
    return probes, curvature_product(divergence, params, probes)
