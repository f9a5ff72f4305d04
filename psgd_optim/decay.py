"""Weight decay, and the step itself: how updates change the parameters.

A decay is given as `weight_decay=`; its rate is the param-group entry of that name, so that it can
be scheduled; a bare number means `Decoupled`. For a penalty that enters the Hessian, add
`l2_penalty` to the loss.
"""

import abc
import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from psgd_optim.linalg import cast, lift, per_block
from psgd_optim.rounding import is_half
from psgd_optim.types import State, expect
from psgd_optim.views import View


@dataclass(frozen=True)
class Decay(abc.ABC):
    """How weights are kept small; concrete decays are final.

    Args:
        rate: Its strength, at least 0.

    Raises:
        ValueError: If the rate is negative.
    """

    rate: float = 0.0

    memory: ClassVar[tuple[str, ...]] = ()
    """Names of the numbers per row (B,) that it keeps from step to step, zero at the start."""

    def __post_init__(self) -> None:
        if not 0 <= self.rate < math.inf:
            raise ValueError(
                f"{type(self).__name__} got the rate {self.rate}; give a number of at least 0."
            )

    @abc.abstractmethod
    def take_step(
        self, view: View, updates: Tensor, lr: float | Tensor, rate: float | Tensor, memory: State
    ) -> None:
        """Move the parameters by `-lr` times their updates, and decay them.

        Args:
            view: The parameters.
            updates: (B, *shape), preconditioned gradients; overwritten.
            lr: Step size.
            rate: The decay's rate in this step; numbers that are tensors are 0-dimensional.
            memory: What it keeps, by name.
        """


@final
@dataclass(frozen=True)
class Decoupled(Decay):
    """Takes `p <- (1 - lr rate) p - lr u`."""

    def take_step(
        self, view: View, updates: Tensor, lr: float | Tensor, rate: float | Tensor, memory: State
    ) -> None:
        """Shrink all parameters, then take the step."""
        # The factor of a sum has to be a number: with a tensor, the updates take it first.
        factor = 1.0 if isinstance(lr, Tensor) else -lr
        params, rows = view.pairs(updates.mul_(-lr) if isinstance(lr, Tensor) else updates)
        if _is_on(rate):
            _shrink_(params, 1 - lr * rate)
        torch._foreach_add_(params, rows, alpha=factor)


@final
@dataclass(frozen=True)
class Cautious(Decay):
    """Decays only the elements that the step brings closer to zero anyway.

    Source: cautious weight decay (arXiv 2510.12402): `p <- p - lr (u + rate p [u p >= 0])`.
    """

    def take_step(
        self, view: View, updates: Tensor, lr: float | Tensor, rate: float | Tensor, memory: State
    ) -> None:
        """Add the decay to the update where their signs agree, then take the step."""
        params, rows = view.pairs(updates)
        if _is_on(rate):
            products = torch._foreach_mul([p.conj() for p in params], rows)
            for row, p, product in zip(rows, params, products, strict=True):
                row.add_(cast(p * (product.real >= 0), row.dtype).mul_(rate))
        torch._foreach_add_(params, torch._foreach_mul(rows, _alike(-lr, rows[0])))


@final
@dataclass(frozen=True)
class Hyperball(Decay):
    """Keeps every row at the norm it started with, and takes steps relative to that norm.

    `p <- R (p - lr R u / |u|) / |p - lr R u / |u||` with the initial norm `R`: `lr` is the length
    of a step relative to the parameter, and there is no rate. Rows that start at zero take plain
    steps. Meant for matrices; give biases and gains a group of their own. Under `Joint` the norm is
    that of the whole vector, and holds in steps in which every parameter has a gradient.

    Raises:
        ValueError: If a rate is given.
    """

    memory: ClassVar[tuple[str, ...]] = ("radius",)

    def __post_init__(self) -> None:
        if self.rate != 0:
            raise ValueError(f"Hyperball got the rate {self.rate}; it has none: give Hyperball().")

    def take_step(
        self, view: View, updates: Tensor, lr: float | Tensor, rate: float | Tensor, memory: State
    ) -> None:
        """Take the step and go back to the sphere."""
        old = view.gather(lambda p: p).to(updates.dtype)
        radius = memory["radius"]  # 0 before the first step, -1 for rows that start at zero
        norm = _norms(old).to(radius.dtype)
        first = torch.where(norm > 0, norm, -1.0)
        radius.copy_(torch.where(radius == 0, first, radius))
        size = _norms(updates)
        scale = torch.where((radius > 0) & (size > 0), radius / size.clamp(min=_tiny(size)), 1.0)
        new = old - lr * per_block(scale, updates) * updates
        back = radius / _norms(new).clamp(min=_tiny(size))
        back = torch.where((radius > 0) & (size > 0), back, 1.0)
        params, rows = view.pairs(new * per_block(back, new))
        torch._foreach_copy_(params, rows)


def as_decay(weight_decay: float | Decay) -> Decay:
    """Return a decay as it is, and a number as the rate of the decoupled one.

    Args:
        weight_decay: A decay or a rate.

    Returns:
        The decay.

    Raises:
        TypeError: If it is neither.
        ValueError: If the rate is negative.
    """
    if isinstance(weight_decay, Decay):
        return weight_decay
    expect("PSGD", "weight_decay", weight_decay, int | float, "a number or one like Cautious(0.1)")
    if not weight_decay >= 0:
        raise ValueError(f"PSGD got weight_decay = {weight_decay}; give a number of at least 0.")
    return Decoupled(weight_decay)


def _is_on(rate: float | Tensor) -> bool:
    """Whether there is a decay, or may be one: the host does not look at tensors."""
    return isinstance(rate, Tensor) or rate != 0


def _shrink_(params: list[Tensor], factor: float | Tensor) -> None:
    """Multiply parameters by a number."""
    like = params[0]
    if is_half(like.dtype) and (isinstance(factor, Tensor) or like.device.type == "cpu"):
        # The factor would be rounded first, to 0.9961 instead of 0.998.
        torch._foreach_copy_(params, [lift(p).mul_(factor) for p in params])
    else:
        torch._foreach_mul_(params, _alike(factor, like))


def _alike(factor: float | Tensor, like: Tensor) -> float | Tensor:
    """Return a number as it is and a tensor in the dtype of another, as lists of them need it."""
    return cast(factor, like.dtype) if isinstance(factor, Tensor) else factor


def _norms(x: Tensor) -> Tensor:
    """Return the 2-norm of each row, (B,), real."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)))
    return norms


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny
