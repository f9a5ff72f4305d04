"""PSGD as data: form, criterion, fit, clips and decay; one optimizer for several settings, too."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from psgd_optim.averages import Nesterov
from psgd_optim.clipping import Clip, ClipElement, ClipJointRMS, ClipRMS, TrustRegion
from psgd_optim.config.base import check, groups_of
from psgd_optim.config.criteria import CriterionConfig, MomentumCriterion
from psgd_optim.config.forms import FormConfig, KronForm, PermutationForm
from psgd_optim.criteria import Criterion
from psgd_optim.decay import Cautious, Decay, Hyperball
from psgd_optim.fitting import Fitting
from psgd_optim.optimizer import PSGD
from psgd_optim.schedules import Anneal
from psgd_optim.types import InputError

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class PSGDConfig:
    """PSGD with any form and criterion."""

    name: ClassVar[str] = "psgd"

    lr: float = 1e-3
    """Step size, in root-mean-square parameter change per step where the momentum is whitened;
    part of a full step with the criterion newton."""
    form: FormConfig = field(default_factory=KronForm)
    """Family of the preconditioner, by name (--optim.form low-rank), and its settings."""
    criterion: CriterionConfig = field(default_factory=MomentumCriterion)
    """What the preconditioner is fitted to, by name (--optim.criterion gradient)."""
    momentum: float = 0.9
    """Decay of the gradient average, in [0, 1)."""
    nesterov: bool = False
    """Whether a step looks ahead of the average."""
    weight_decay: float = 0.0
    """Decay of the parameters with two or more axes; a step takes lr * weight_decay."""
    decay: Literal["decoupled", "cautious", "hyperball"] = "decoupled"
    """How they decay: cautious where a step goes towards zero anyway; hyperball keeps their norm
    instead, with lr relative to it and no weight-decay."""
    precond_lr: float = 0.7
    """Step size of the preconditioner at the start, in [0, 1)."""
    precond_lr_final: float = 0.1
    """What it falls to, by a factor e in 1000 steps; at most precond_lr."""
    update_prob: float = 0.03
    """Probability of fitting the preconditioner in a step, once the start is over."""
    update_every_step_for: int = 500
    """Steps at the start that all fit the preconditioner."""
    update_prob_fall: int = 1000
    """Steps in which the probability of a fit then falls by a factor e."""
    init_scale: float | None = None
    """Scale of the preconditioner's factor at the start; None takes that of the first gradient."""
    overlap: bool = False
    """Fit beside the next forward and backward pass."""
    spread: bool = False
    """Fit different shapes in different steps."""
    clip_rms: float | None = None
    """Largest root mean square of one parameter's preconditioned gradient; inf sets no limit, None
    takes the criterion's own: 1.1 if it whitens."""
    clip_element: float | None = None
    """Largest modulus of an element of it; None takes the criterion's own: 10 if it whitens."""
    clip_joint_rms: float | None = None
    """Largest root mean square over all parameters; None takes the criterion's own: 0.1 with newton
    and curvature."""
    trust_region: float | None = None
    """Largest change by a step of lr 1 of the quadratic model that it comes from, such as the KL
    divergence of a policy with the criterion curvature; None sets no limit."""
    max_memory_gb: float = math.inf
    """Largest memory of the optimizer's state in GiB; a larger one is refused at once."""
    compile: bool = False
    """Run a step as one graph of torch.compile."""

    def __post_init__(self) -> None:
        for name in ("update_prob", "precond_lr_final"):
            most = 1.0 if name == "update_prob" else self.precond_lr
            if not 0 <= getattr(self, name) <= most:
                raise InputError(
                    f"{self.name} got {name} = {getattr(self, name)}; give a number from 0 to "
                    f"{most}."
                )
        if self.update_prob_fall < 1:
            raise InputError(
                f"{self.name} got update_prob_fall = {self.update_prob_fall}; give a number of "
                "steps of at least 1."
            )
        # The group takes a multiple of its order of elements.
        order = self.form.order if isinstance(self.form, PermutationForm) else 1
        check(self, columns=2 * max(order, 1))

    def build(self, parameters: Sequence[Tensor], seed: int) -> torch.optim.Optimizer:
        """Return the optimizer of some parameters.

        Args:
            parameters: What it trains.
            seed: Of the gate's coin and of all noise.

        Returns:
            A `PSGD` with one or two groups.
        """
        return build_psgd([(self, parameters)], seed)

    def clips(self, criterion: Criterion) -> tuple[Clip, ...]:
        """Return the clips: the criterion's own, but for those that are set."""
        limits = {type(clip): clip for clip in criterion.default_clip}
        for kind, limit in (
            (ClipRMS, self.clip_rms),
            (ClipElement, self.clip_element),
            (ClipJointRMS, self.clip_joint_rms),
            (TrustRegion, self.trust_region),
        ):
            if limit is not None:
                limits[kind] = kind(limit)
        return tuple(clip for clip in limits.values() if getattr(clip, "limit", 0.0) < math.inf)

    def fitting(self, seed: int) -> Fitting:
        """Return how the preconditioner is fitted."""
        return Fitting(
            precond_lr=Anneal(self.precond_lr, self.precond_lr_final, flat=0),
            gate=Anneal(
                1.0,
                self.update_prob,
                flat=self.update_every_step_for,
                decay=1 / self.update_prob_fall,
            ),
            overlap=self.overlap,
            spread=self.spread,
            init_scale=self.init_scale,
            seed=seed,
            max_memory=self.max_memory_gb * _GIB,
        )

    def groups(self, parameters: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Return param groups with all that a group can have of its own."""
        own = {
            "lr": self.lr,
            "momentum": Nesterov(self.momentum) if self.nesterov else self.momentum,
            "form": self.form.build(),
        }
        if self.decay == "hyperball":
            large = [p for p in parameters if p.ndim >= 2]
            small = [p for p in parameters if p.ndim < 2]
            groups: list[dict[str, Any]] = [
                {"params": large, "weight_decay": Hyperball(self.weight_decay)},
                {"params": small, "weight_decay": 0.0},
            ]
            return [{**own, **group} for group in groups if group["params"]]
        kind: type[Decay] | None = Cautious if self.decay == "cautious" else None
        return [
            {**own, **group, "weight_decay": kind(rate) if kind else rate}
            for group in groups_of(parameters, self.weight_decay)
            for rate in (group["weight_decay"],)
        ]


_SHARED = (
    "criterion",
    "precond_lr",
    "precond_lr_final",
    "update_prob",
    "update_every_step_for",
    "update_prob_fall",
    "init_scale",
    "overlap",
    "spread",
    "clip_rms",
    "clip_element",
    "clip_joint_rms",
    "trust_region",
    "max_memory_gb",
    "compile",
)


def differing(first: PSGDConfig, second: PSGDConfig) -> str | None:
    """Return a setting that must be equal within one optimizer and is not.

    Args:
        first: The settings of some parameters.
        second: Those of others.

    Returns:
        Its name, or `None` if one `PSGD` can have both.
    """
    differing = (name for name in _SHARED if getattr(first, name) != getattr(second, name))
    return next(differing, None)


def build_psgd(parts: Sequence[tuple[PSGDConfig, Sequence[Tensor]]], seed: int) -> PSGD:
    """Build one optimizer of parameters with different forms, rates, momenta and decays.

    Args:
        parts: Settings, each with its parameters.
        seed: Of the gate's coin and of all noise.

    Returns:
        The optimizer; a part has one or two groups.

    Raises:
        ValueError: If settings differ that are the optimizer's, not a group's.
    """
    first = parts[0][0]
    for config, _ in parts[1:]:
        if name := differing(first, config):
            raise ValueError(
                f"One PSGD got {name} = {getattr(first, name)} and {getattr(config, name)}; give "
                "all of its parameters the same."
            )
    groups = [group for config, parameters in parts for group in config.groups(parameters)]
    criterion = first.criterion.build()
    return PSGD(
        groups,
        first.lr,
        form=groups[0]["form"],
        criterion=criterion,
        momentum=groups[0]["momentum"],
        clip=first.clips(criterion),
        fitting=first.fitting(seed),
        compile=first.compile,
    )
