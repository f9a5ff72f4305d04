"""The optimizer of a network, whatever it is: built and watched."""

import torch
from torch import nn

from psgd_optim.config import AdamWConfig, MuonConfig, OptimizerConfig, build
from psgd_optim.tools.together import Together


def build_optimizer(
    network: nn.Module, config: OptimizerConfig, seed: int
) -> torch.optim.Optimizer:
    """Build what steps a network.

    Args:
        network: Actor or critic.
        config: The optimizer's settings; Muon, which steps matrices only, leaves the log-std to
            AdamW with its own default settings.
        seed: Of the optimizer's own random numbers.

    Returns:
        An optimizer, or two as one.
    """
    named = list(network.named_parameters())
    if not isinstance(config, MuonConfig):
        return build(named, config, seed)
    matrices = [(name, p) for name, p in named if p.ndim == 2]
    vectors = [(name, p) for name, p in named if p.ndim != 2]
    if not vectors:
        return build(matrices, config, seed)
    return Together({
        "matrices": build(matrices, config, seed),
        "vectors": build(vectors, AdamWConfig(), seed),
    })


def health(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, float]:
    """Return the figures of an optimizer's last step; waits for the device.

    Args:
        optimizer: Any.
        prefix: Put before their names.

    Returns:
        By name; empty for an optimizer that has none.
    """
    if not hasattr(optimizer, "metrics"):
        return {}
    return {f"{prefix}/{name}": float(value) for name, value in optimizer.metrics().items()}
