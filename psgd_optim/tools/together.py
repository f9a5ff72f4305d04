"""Several optimizers, each with parameters of its own, as one."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from psgd_optim.tools.stepping import needs_closure, reset_momentum, takes_pairs
from psgd_optim.types import InputError


class Together(torch.optim.Optimizer):
    """Steps several optimizers one after the other.

    `param_groups` are the optimizers' own, in their order, so that learning-rate schedulers and
    gradient scalers work; `state` stays empty, as each optimizer keeps its own.

    Args:
        optimizers: By name; all step from gradients, and no two have a parameter in common.

    Raises:
        InputError: If one of them differentiates the loss itself, or takes pairs.
        ValueError: If there are none, or two of them share a parameter.
    """

    needs_closure = False
    """Whether `step` needs a closure: never."""

    def __init__(self, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        for name, optimizer in optimizers.items():
            if needs_closure(optimizer):
                raise InputError(
                    f"The optimizer of {name} differentiates the loss itself, which it cannot do "
                    "beside another optimizer; give all parameters psgd with one criterion, and "
                    "differ in forms and rates only."
                )
            if takes_pairs(optimizer):
                raise InputError(
                    f"The optimizer of {name} is fitted to products of a curvature, which it does "
                    "not get beside another optimizer; give it another criterion."
                )
        self._optimizers = dict(optimizers)
        params = [p for group in self._joined() for p in group["params"]]
        if len({id(p) for p in params}) < len(params):
            raise ValueError("Two optimizers got the same parameter; give each to one of them.")
        super().__init__(params, {})
        self.param_groups = self._joined()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take torch's own first group; more belong to one of the optimizers.

        Args:
            param_group: As in torch.

        Raises:
            TypeError: After construction.
        """
        if self.param_groups:
            raise TypeError("Together has no groups of its own; give them to one of its parts.")
        super().add_param_group(param_group)

    @property
    def fits_next(self) -> bool:
        """Whether the next step of one of them fits a preconditioner."""
        return any(getattr(each, "fits_next", False) for each in self._optimizers.values())

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """The optimizers by name."""
        return self._optimizers

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401 -- torch's
        """Step every optimizer.

        Args:
            closure: As in torch: clears the gradients, computes the loss, calls `backward` and
                returns the loss; called once.

        Returns:
            What it returned, or `None`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self._optimizers.values():
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every optimizer by name."""
        return {name: each.state_dict() for name, each in self._optimizers.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned.

        Args:
            state_dict: By the same names.

        Raises:
            ValueError: If it is of other optimizers.
        """
        if list(state_dict) != list(self._optimizers):
            raise ValueError(
                f"The saved state is of {', '.join(map(str, state_dict))}, the optimizers here are "
                f"of {', '.join(self._optimizers)}; build them as they were."
            )
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state_dict[name])
        self.param_groups = self._joined()  # torch puts new dicts in the place of the old ones

    def reset_momentum(self) -> None:
        """Empty the gradient averages of every optimizer."""
        for each in self._optimizers.values():
            reset_momentum(each)

    def metrics(self) -> dict[str, Tensor]:
        """Return the figures of the optimizers that have some, as `NAME/FIGURE`."""
        return {
            f"{name}/{figure}": value
            for name, each in self._optimizers.items()
            if hasattr(each, "metrics")
            for figure, value in each.metrics().items()
        }

    def summary(self) -> str:
        """Return what the optimizers say of themselves, each below its name."""
        return "\n\n".join(f"{name}:\n{_summary(each)}" for name, each in self._optimizers.items())

    def _joined(self) -> list[dict[str, Any]]:
        return list(_groups(self._optimizers))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_optimizers": self._optimizers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.param_groups = self._joined()


def _groups(optimizers: Mapping[str, torch.optim.Optimizer]) -> Iterator[dict[str, Any]]:
    for optimizer in optimizers.values():
        yield from optimizer.param_groups


def _summary(optimizer: torch.optim.Optimizer) -> str:
    if hasattr(optimizer, "summary"):
        return str(optimizer.summary())
    count = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    return f"{type(optimizer).__name__}, {count:,} numbers"
