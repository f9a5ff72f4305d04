"""The diagonal form: one positive number per parameter element."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from psgd_optim.forms.base import Preconditioner, state_dtype
from psgd_optim.linalg import abs_square, lift, per_block
from psgd_optim.step_size import LipschitzEMA
from psgd_optim.types import Probe, State


@final
@dataclass(frozen=True, kw_only=True)
class Diagonal(Preconditioner):
    """`Q = diag(q)`, element-wise scaling; the cheapest form and the group rule's simplest case.

    Every element is a group of its own, with a step size of its own: elements of different scale
    are whitened equally fast. State: `q` and the step's curvature bound `l`, (B, *shape), real.

    Args:
        normaliser: What divides the step size.
        dtype: The dtype of `q`; `None` is the parameters' real dtype, at least single precision.

    Source: the group rule of S0 (12), as a direct sum of one-dimensional groups, with
    `E[v^2] = 1` put in where the probe is integrated out. Deviation: each step is divided by a
    Lipschitz bound, not by the largest gradient entry.
    """

    # A bound that follows a single element's samples leans on the very sample it divides, which
    # biases P upwards: by 12 % at beta 0.9, 3 % at 0.99 (Gaussian gradients, seven scales).
    normaliser: LipschitzEMA = LipschitzEMA(beta=0.99)
    dtype: torch.dtype | None = None

    name: ClassVar[str] = "Diagonal"

    def init(self, shape: tuple[int, ...], scale: Tensor, like: Tensor) -> State:
        """Return `q = scale`."""
        scale = scale.to(like.device, state_dtype(like.real, self.dtype))
        q = scale.view(-1, *(1,) * len(shape)).repeat(1, *shape)
        return {"q": q, "l": torch.zeros_like(lift(q))}

    def draw(self, state: State, generator: torch.Generator) -> State:
        """Return nothing: an update needs no random numbers."""
        return {}

    def update(self, state: State, probe: Probe, draws: State, rate: Tensor | float) -> None:
        """Take `q <- q (1 - rate / L (a^2 - b^2))` with `a = q h`, `b = v / q`; keeps q > 0."""
        q = lift(state["q"])
        a = abs_square(q * probe.h)
        b = q.square().reciprocal() if probe.v is None else abs_square(probe.v / q)
        bound = self.normaliser.grow(state["l"], a + b)
        step = (per_block(rate, q) if isinstance(rate, Tensor) and rate.ndim else rate) / bound
        # A sample too large for its square says nothing: its element stays as it is.
        safe = bound.isfinite()
        state["q"].copy_(torch.where(safe, q * (1 - step * (a - b)), q))
        state["l"].copy_(torch.where(safe, bound, state["l"]))

    def apply(self, state: State, x: Tensor) -> Tensor:
        """Return `q^2 x`."""
        return (lift(state["q"]).square() * x).to(x.dtype)

    def to_dense(self, state: State) -> Tensor:
        """Return the diagonal matrices, (B, N, N)."""
        return torch.diag_embed(lift(state["q"]).flatten(1))

    def numel(self, shape: tuple[int, ...]) -> int:
        """Return the number of elements."""
        return torch.Size(shape).numel()

    def describe(self, shape: tuple[int, ...]) -> str:
        """Return e.g. `Diagonal(512, 128)`."""
        return f"{self.name}({', '.join(map(str, shape))})"
