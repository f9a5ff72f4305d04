"""A race of whole training runs of psgd_lm or psgd_rl, each in a folder that is thrown away."""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from experiments.plan import CONTROLS, RANDOM_SIZE, RANDOM_STEP, Contest
from experiments.results import DIVERGED, Key, Outcome
from psgd_optim.config import OptimizerConfig, PeerConfig

RANDOM_STEPS = 10
"""The random control's random walk in few steps, of which each has a gradient."""


class RandomWalk(torch.optim.Optimizer):
    """Steps of random directions, `lr` times standard normal numbers, whatever the gradients."""

    def __init__(self, params: ParamsT, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self._draw = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Move all parameters that have a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if isinstance(p.grad, Tensor):
                    noise = torch.randn(p.shape, generator=self._draw, dtype=p.dtype)
                    p.add_(noise.to(p.device), alpha=group["lr"])


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training run that an application is asked for."""

    case: str
    is_control: bool
    """Then steps are few, and rates stay as they are."""
    optimizer: OptimizerConfig
    seed: int
    steps: int
    device: str
    folder: Path


@dataclass(frozen=True, kw_only=True)
class ApplicationRace(Contest):
    """Optimizers in one of the applications."""

    train: Callable[[Training], Mapping[str, float]]
    """Trains once, and returns the figures; a run that diverged has infinite ones."""
    optimizers: Mapping[str, tuple[OptimizerConfig, ...]]
    """By method, settings that differ in their learning rate, the default first."""

    @property
    def rates(self) -> Mapping[str, Sequence[float]]:
        """Those of the settings."""
        return {name: [config.lr for config in tried] for name, tried in self.optimizers.items()}

    def run(self, key: Key, device: torch.device) -> Outcome:
        """Train once."""
        optimizer, steps = self._entrant(key)
        with tempfile.TemporaryDirectory() as folder:
            figures = self.train(
                Training(
                    case=key.case,
                    is_control=key.method in CONTROLS,
                    optimizer=optimizer,
                    seed=key.seed,
                    steps=steps,
                    device=device.type,
                    folder=Path(folder) / "run",
                )
            )
        if not math.isfinite(figures[self.target]):
            return Outcome(figures={}, status=DIVERGED)
        return Outcome(figures=dict(figures))

    def _entrant(self, key: Key) -> tuple[OptimizerConfig, int]:
        if key.method in CONTROLS:
            walk = RandomWalk.__module__ + ".RandomWalk"
            if key.method == RANDOM_STEP:
                size = RANDOM_SIZE * math.sqrt(key.steps / RANDOM_STEPS)
                return PeerConfig(target=walk, lr=size), RANDOM_STEPS
            return PeerConfig(target=walk, lr=1e-30), 1  # a rate of 0 is refused
        tried = self.optimizers[key.method]
        return next(config for config in tried if config.lr == key.rate), key.steps
