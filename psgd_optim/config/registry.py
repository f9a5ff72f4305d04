"""Every optimizer by name, and the function that builds one from its configuration."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from psgd_optim.config.base import built
from psgd_optim.config.criteria import CRITERIA, NewtonCriterion
from psgd_optim.config.forms import FORMS, KronForm
from psgd_optim.config.peer import PeerConfig
from psgd_optim.config.psgd import PSGDConfig
from psgd_optim.config.torch_optimizers import AdamWConfig, MuonConfig, SGDConfig

OptimizerConfig = PSGDConfig | AdamWConfig | SGDConfig | MuonConfig | PeerConfig

OPTIMIZERS: dict[str, OptimizerConfig] = {
    PSGDConfig.name: PSGDConfig(),
    AdamWConfig.name: AdamWConfig(),
    SGDConfig.name: SGDConfig(),
    MuonConfig.name: MuonConfig(),
    # The settings of `named.kron_newton`.
    "newton": PSGDConfig(
        lr=0.1,
        form=KronForm(max_skew=math.inf),
        criterion=NewtonCriterion(),
        momentum=0.0,
        precond_lr=0.1,
        precond_lr_final=0.1,
        update_prob=1.0,
    ),
    PeerConfig.name: PeerConfig(),
}
"""Every optimizer by its name, with its default settings; newton is psgd with settings for it."""

OPTIMIZER_PARTS: Mapping[str, Mapping[str, object]] = {"form": FORMS, "criterion": CRITERIA}
"""What the parts of an optimizer can be, by field and name."""


def build(
    named_parameters: Iterable[tuple[str, Tensor]], config: OptimizerConfig, seed: int = 0
) -> torch.optim.Optimizer:
    """Build the optimizer that a configuration describes.

    Weight decay applies to parameters with two or more axes; biases and gains keep their size.

    Args:
        named_parameters: A module's `named_parameters()`; frozen ones are left out.
        config: The optimizer's settings.
        seed: Of the optimizer's own random numbers, if it draws any.

    Returns:
        The optimizer, with one or two parameter groups.
    """
    return built(config, [p for _, p in named_parameters if p.requires_grad], seed)
