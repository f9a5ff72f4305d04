"""Optimizers as data: one small dataclass per optimizer and the function that builds it.

The applications hold one of these in their configuration and never name an optimizer.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from psgd_optim.clipping import ClipElement, ClipRMS
from psgd_optim.criteria import GradientWhitening, MomentumWhitening
from psgd_optim.fitting import Fitting
from psgd_optim.forms.kron import Kron
from psgd_optim.geometry import Q0_5EQ1_5, QUAD
from psgd_optim.optimizer import PSGD
from psgd_optim.schedules import Anneal
from psgd_optim.scope import Split
from psgd_optim.types import InputError


@dataclass(frozen=True, kw_only=True)
class KronConfig:
    """PSGD with the Kronecker form and the whitening criterion."""

    name: ClassVar[str] = "psgd"

    lr: float = 1e-3
    """Step size, in root-mean-square parameter change per step."""
    momentum: float = 0.9
    """Decay of the gradient average, in [0, 1)."""
    weight_decay: float = 0.0
    """Decoupled decay of the parameters with two or more axes; a step takes lr * weight_decay."""
    whiten: Literal["momentum", "gradient"] = "momentum"
    """What the preconditioner whitens."""
    precond_lr: float = 0.7
    """Step size of the preconditioner at the start, in [0, 1)."""
    precond_lr_final: float = 0.1
    """What it falls to, by a factor e in 1000 steps; at most precond_lr."""
    update_prob: float = 0.03
    """Probability of fitting the preconditioner in a step, once the start is over."""
    update_every_step_for: int = 500
    """Steps at the start that all fit the preconditioner."""
    max_size: int = 8192
    """Longest axis that gets a dense factor."""
    max_skew: float = 1.0
    """An axis gets a dense factor only if its squared size is at most this times the elements."""
    block_size: int = 0
    """Longest axis of the pieces that parameters are cut into, each with a preconditioner of its
    own; 0 leaves them whole."""
    geometry: Literal["Q0.5EQ1.5", "QUAD"] = "Q0.5EQ1.5"
    """How a fit moves a dense factor; QUAD is cheaper where both sides are dense."""
    clip_rms: float = 1.1
    """Largest root mean square of one parameter's preconditioned gradient."""
    clip_element: float = 10.0
    """Largest modulus of an element of the preconditioned gradient."""

    def __post_init__(self) -> None:
        for name in ("update_prob", "precond_lr_final"):
            most = 1.0 if name == "update_prob" else self.precond_lr
            if not 0 <= getattr(self, name) <= most:
                raise InputError(
                    f"{self.name} got {name} = {getattr(self, name)}; give a number from 0 to "
                    f"{most}."
                )
        _check(self)


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """torch.optim.AdamW."""

    name: ClassVar[str] = "adamw"

    lr: float = 1e-3
    """Step size."""
    beta1: float = 0.9
    """Decay of the gradient average."""
    beta2: float = 0.99
    """Decay of the squared gradient average."""
    eps: float = 1e-8
    """Added to the root of the squared gradient average."""
    weight_decay: float = 0.0
    """Decoupled decay of the parameters with two or more axes."""

    def __post_init__(self) -> None:
        _check(self)


OptimizerConfig = KronConfig | AdamWConfig


def _check(config: OptimizerConfig) -> None:
    """Refuse settings that the optimizer refuses, before a run has written anything."""
    if not 0 < config.lr < math.inf:
        raise InputError(f"{config.name} got lr = {config.lr}; give a number above 0.")
    try:
        build([("probe", torch.zeros(1, 1, requires_grad=True))], config)
    except ValueError as error:
        raise InputError(f"{config.name}: {error}") from error


def build(
    named_parameters: Iterable[tuple[str, Tensor]], config: OptimizerConfig, seed: int = 0
) -> torch.optim.Optimizer:
    """Build the optimizer that a configuration describes.

    Weight decay applies to parameters with two or more axes; biases and gains keep their size.

    Args:
        named_parameters: A module's `named_parameters()`.
        config: The optimizer's settings.
        seed: Of the optimizer's own random numbers, if it draws any.

    Returns:
        The optimizer, with one or two parameter groups.
    """
    parameters = [p for _, p in named_parameters if p.requires_grad]
    split = {config.weight_decay: [p for p in parameters if p.ndim >= 2]}
    split.setdefault(0.0, []).extend(p for p in parameters if p.ndim < 2)
    groups = [{"params": ps, "weight_decay": decay} for decay, ps in split.items() if ps]
    if isinstance(config, AdamWConfig):
        return torch.optim.AdamW(
            groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
        )
    geometry = QUAD if config.geometry == "QUAD" else Q0_5EQ1_5
    kron = Kron(max_size=config.max_size, max_skew=config.max_skew, geometry=geometry)
    return PSGD(
        groups,
        config.lr,
        form=Split(kron, config.block_size) if config.block_size else kron,
        criterion=MomentumWhitening() if config.whiten == "momentum" else GradientWhitening(),
        momentum=config.momentum,
        clip=(ClipRMS(config.clip_rms), ClipElement(config.clip_element)),
        fitting=Fitting(
            precond_lr=Anneal(config.precond_lr, config.precond_lr_final, flat=0),
            gate=Anneal(1.0, config.update_prob, flat=config.update_every_step_for),
            seed=seed,
        ),
    )


OPTIMIZERS: dict[str, OptimizerConfig] = {
    KronConfig.name: KronConfig(),
    AdamWConfig.name: AdamWConfig(),
}
"""Every optimizer by its name, with its default settings."""
