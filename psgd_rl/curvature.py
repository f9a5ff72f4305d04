"""Curvature of both networks for optimizers that are fitted to it: products `H v`, never `H`.

A network's outputs at its own parameters and at others diverge: policies by KL(old || new), values
by half their mean squared distance. At equal parameters a divergence and its gradient are 0, and
its Hessian is the generalized Gauss-Newton matrix `J^T M J / B`, positive semi-definite: for a
policy the Fisher matrix, whose inverse makes a gradient the natural one, and for values
`J^T J / B`. The Hessian of PPO's own loss is neither, as advantages have both signs.

Shape legend: `B` samples, `a` action components.
Source: Schulman et al. 2015 (arXiv 1502.05477), appendix C; Martens 2020 (arXiv 1412.1193) on
the generalized Gauss-Newton matrix.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Outputs = tuple[Tensor, ...]
"""What a network says of a batch: a policy's parameters, or values."""

Divergence = Callable[[Outputs, Outputs], Tensor]
"""A distance of new outputs from old ones, (B,), smallest where they are equal."""

Pair = tuple[list[Tensor], list[Tensor]]
"""Probes `v` and products `H v`, in the order of an optimizer's parameters."""


def normal_kl(old: Outputs, new: Outputs) -> Tensor:
    """Return KL(old || new) of independent normal distributions.

    Args:
        old: Mean (B, a) and log-std (a,).
        new: The same.

    Returns:
        (B,), nats.
    """
    (old_mean, old_log_std), (mean, log_std) = old, new
    # log(s / s_old) + (s_old^2 + (mu_old - mu)^2) / 2 s^2 - 1 / 2, summed over the components
    z = (old_mean - mean) * torch.exp(-log_std)
    spread = log_std - old_log_std + 0.5 * torch.exp(2 * (old_log_std - log_std)) - 0.5
    return (spread + 0.5 * z.square()).sum(-1)


def value_distance(old: Outputs, new: Outputs) -> Tensor:
    """Return half the squared distance of values.

    Args:
        old: The values (B,) alone.
        new: The same.

    Returns:
        (B,).
    """
    return 0.5 * (new[0] - old[0]).square()


def curvature_product(
    divergence: Divergence, outputs: Outputs, params: Sequence[Tensor], probes: Sequence[Tensor]
) -> list[Tensor]:
    """Return the Hessian of the mean divergence of the outputs from themselves, times a vector.

    Invariant: `v^T H v >= 0`.

    Args:
        divergence: Of the outputs; twice differentiable.
        outputs: Of a network, with their graph.
        params: Of the network, every one of which the outputs depend on.
        probes: A tensor `v` like each parameter.

    Returns:
        `H v`, one tensor per parameter, without graphs.
    """
    old = tuple(output.detach() for output in outputs)
    # The gradient is 0, but its derivative is not.
    grads = torch.autograd.grad(divergence(old, outputs).mean(), params, create_graph=True)
    return list(torch.autograd.grad(grads, params, probes))


def curvature_pair(
    divergence: Divergence,
    outputs: Outputs,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> Pair:
    """Return a pair for `PSGD.step(pair=...)`.

    Args:
        divergence: Of the outputs.
        outputs: Of the network that the optimizer trains, with their graph.
        optimizer: Says which parameters there are, in which order.
        generator: Draws the probe, on the CPU, so that it is the same on every device.

    Returns:
        A standard normal probe and its product.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    probes = [torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p in params]
    return probes, curvature_product(divergence, outputs, params, probes)
