"""Any optimizer that is installed, by the dotted name of its class."""

import importlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from psgd_optim.config.base import check, groups_of
from psgd_optim.types import InputError


@dataclass(frozen=True, kw_only=True)
class PeerConfig:
    """An optimizer of another package, such as pytorch_optimizer.SOAP."""

    name: ClassVar[str] = "peer"

    target: str = "torch.optim.Adam"
    """Dotted name of its class, a torch.optim.Optimizer that steps from gradients."""
    lr: float = 1e-3
    """Step size."""
    weight_decay: float = 0.0
    """Decay of the parameters with two or more axes, as the optimizer understands it."""
    settings: str = "{}"
    """Its other arguments as a JSON object, as in '{"precondition_frequency": 10}'."""

    def __post_init__(self) -> None:
        check(self)

    def build(self, parameters: Sequence[Tensor], seed: int) -> torch.optim.Optimizer:
        """Return the optimizer of some parameters.

        Args:
            parameters: What it trains.
            seed: Of no use.

        Returns:
            The optimizer.

        Raises:
            InputError: If there is no such optimizer, or it does not take the settings.
        """
        kind = _find(self.target)
        settings = self._arguments()
        accepted = inspect.signature(kind).parameters
        groups: list[dict[str, Any]] = [{"params": list(parameters)}]
        if "weight_decay" in accepted:
            groups = groups_of(parameters, self.weight_decay)
        elif self.weight_decay:
            raise InputError(
                f"{self.target} takes no weight_decay, and got {self.weight_decay}; leave "
                "weight-decay 0."
            )
        try:
            return kind(groups, lr=self.lr, **settings)  # type: ignore[call-arg]
        # Another package's constructor raises what it likes; all of it is about its arguments.
        except Exception as error:
            message = " ".join(str(error).split())
            raise InputError(
                f"{self.target} refuses lr = {self.lr} with the settings {self.settings}: "
                f"{message}; change settings."
            ) from error

    def _arguments(self) -> dict[str, Any]:
        """Return the settings as keyword arguments; lists become tuples, as for betas."""
        try:
            values = json.loads(self.settings)
        except ValueError as error:
            raise InputError(
                f"{self.name} got settings {self.settings!r}, which is no JSON ({error}); give an "
                """object such as '{"precondition_frequency": 10}'."""
            ) from error
        if not isinstance(values, dict) or values.keys() & {"params", "lr", "weight_decay"}:
            raise InputError(
                f"{self.name} got settings {self.settings!r}; give a JSON object, without lr and "
                "weight_decay, which have flags of their own."
            )
        return {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }


def _find(target: str) -> type[torch.optim.Optimizer]:
    """Return the optimizer class of a dotted name."""
    module_name, _, class_name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"Cannot import {module_name or target!r} for the optimizer {target!r} ({error}); "
            "install its package, or give target a name such as pytorch_optimizer.SOAP."
        ) from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise InputError(
            f"{target} is no torch.optim.Optimizer; give target the dotted name of such a class."
        )
    closure = inspect.signature(found.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise InputError(
            f"{target} evaluates the loss itself, from a closure; give target an optimizer that "
            "steps from gradients."
        )
    return found
