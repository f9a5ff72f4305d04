"""Optimizers of torch as data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from psgd_optim.config.base import check, groups_of
from psgd_optim.types import InputError


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
        check(self)

    def build(self, parameters: Sequence[Tensor], seed: int) -> torch.optim.Optimizer:
        """Return the optimizer of some parameters."""
        return torch.optim.AdamW(
            groups_of(parameters, self.weight_decay),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            fused=True,
        )


@dataclass(frozen=True, kw_only=True)
class SGDConfig:
    """torch.optim.SGD."""

    name: ClassVar[str] = "sgd"

    lr: float = 0.1
    """Step size."""
    momentum: float = 0.0
    """Decay of the sum of gradients."""
    nesterov: bool = False
    """Whether a step looks ahead of the sum; takes momentum."""
    weight_decay: float = 0.0
    """Decay of the parameters with two or more axes, added to the gradient."""

    def __post_init__(self) -> None:
        check(self)

    def build(self, parameters: Sequence[Tensor], seed: int) -> torch.optim.Optimizer:
        """Return the optimizer of some parameters."""
        return torch.optim.SGD(
            groups_of(parameters, self.weight_decay),
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
        )


@dataclass(frozen=True, kw_only=True)
class MuonConfig:
    """torch.optim.Muon, for matrices only."""

    name: ClassVar[str] = "muon"

    lr: float = 1e-2
    """Step size."""
    momentum: float = 0.95
    """Decay of the gradient average."""
    nesterov: bool = True
    """Whether a step looks ahead of the average."""
    weight_decay: float = 0.0
    """Decoupled decay."""
    iterations: int = 5
    """Newton-Schulz iterations of a step."""
    adjust: Literal["original", "match-rms-adamw"] = "original"
    """How lr depends on the shape: original takes tall matrices faster; match-rms-adamw makes
    updates as large as those of AdamW, so that its lr carries over."""

    def __post_init__(self) -> None:
        if not 1 <= self.iterations < 100:  # torch raises for more
            raise InputError(f"{self.name} got iterations = {self.iterations}; give 1 to 99.")
        check(self)

    def build(self, parameters: Sequence[Tensor], seed: int) -> torch.optim.Optimizer:
        """Return the optimizer of some parameters.

        Args:
            parameters: Matrices.
            seed: Of no use.

        Returns:
            The optimizer.

        Raises:
            InputError: If a parameter is none.
        """
        for p in parameters:
            if p.ndim != 2:
                raise InputError(
                    f"{self.name} steps matrices only, and got a parameter of shape "
                    f"{tuple(p.shape)}; give such parameters another optimizer (train_lm.py: "
                    "--embedding adamw --head adamw --vector adamw)."
                )
        return torch.optim.Muon(
            parameters,
            lr=self.lr,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            nesterov=self.nesterov,
            ns_steps=self.iterations,
            adjust_lr_fn=self.adjust.replace("-", "_"),
        )
