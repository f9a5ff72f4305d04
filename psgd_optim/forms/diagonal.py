"""Forms that only scale: one positive number per element, or one for a whole parameter."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from psgd_optim.forms.base import Preconditioner, check_parts, state_dtype
from psgd_optim.group_gradient import GroupGradient, VectorGradient
from psgd_optim.linalg import abs_square, lift, per_block
from psgd_optim.rounding import draw_bits, write_
from psgd_optim.step_size import LipschitzEMA, Normaliser
from psgd_optim.types import Probe, State


@final
@dataclass(frozen=True, kw_only=True)
class Diagonal(Preconditioner):
    """`Q = diag(q)`, element-wise scaling; the cheapest form and the group rule's simplest case.

    State: `q`, (B, *shape), real, and the divisor of the step `l`, of the shape of `q` where every
    element has a step of its own, else (B,).

    Args:
        elementwise: Whether every element is a group of its own, with a step size of its own, so
            that elements of different scale are whitened equally fast; else one step serves the
            whole parameter, as the papers have it.
        normaliser: What divides the step size. Element-wise, `MaxEntry()` gives the sign rule
            `q (1 - rate sign(a^2 - b^2))`, and `LipschitzEMA(beta=0)` divides by `a^2 + b^2`.
        dtype: The dtype of `q`; `None` is the parameters' real dtype, at least single precision.
            Half precision is rounded stochastically.

    Source: the group rule of S0 (12), algorithms 4.3, with `E[v^2] = 1` put in where the probe is
    integrated out. Deviation: element-wise steps, and division by a Lipschitz bound, are the
    default; the papers take one step, divided by the largest gradient entry.
    """

    elementwise: bool = True
    # A bound that follows a single element's samples leans on the very sample it divides, which
    # biases P upwards: by 12 % at beta 0.9, 3 % at 0.99 (Gaussian gradients, seven scales).
    normaliser: Normaliser = LipschitzEMA(beta=0.99)
    dtype: torch.dtype | None = None

    name: ClassVar[str] = "Diagonal"

    def __post_init__(self) -> None:
        check_parts(self.name, self.normaliser, self.dtype)

    @property
    def layout(self) -> str:
        """The name."""
        return self.name

    @property
    def needs_v(self) -> bool:
        """Return no: `E[v^2] = 1` stands in for a probe."""
        return False

    def init(self, shape: tuple[int, ...], scale: Tensor, like: Tensor) -> State:
        """Return `q = scale`."""
        scale = scale.to(like.device, state_dtype(like.real, self.dtype))
        q = scale.view(-1, *(1,) * len(shape)).repeat(1, *shape)
        return {"q": q, "l": torch.zeros_like(lift(q if self.elementwise else scale))}

    def draw(self, state: State, generator: torch.Generator) -> State:
        """Draw the bits that round a state in half precision; an update needs no others."""
        return draw_bits(state, generator)

    def update(self, state: State, probe: Probe, draws: State, rate: Tensor | float) -> None:
        """Take `q <- q (1 - rate / L (a^2 - b^2))` with `a = q h`, `b = v / q`; keeps q > 0."""
        q = lift(state["q"])
        t1 = abs_square(q * probe.h)
        t2 = q.square().reciprocal() if probe.v is None else abs_square(probe.v / q)
        _descend(state, self.normaliser, (t1, t2), draws, rate)

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


@final
@dataclass(frozen=True, kw_only=True)
class Scalar(Preconditioner):
    """`Q = q I`, one positive number for a whole parameter: its step is its gradient's size.

    State: `q`, (B, 1), real; the divisor of the step `l`, (B,); and `shape`, (B, 0, *shape), an
    empty tensor that remembers the parameter's shape and has no numbers.

    Args:
        normaliser: What divides the step size.
        dtype: The dtype of `q`; `None` is the parameters' real dtype, at least single precision.
            Half precision is rounded stochastically.

    Source: the scalar rule of algorithms 4.13: `q` moves along `|a|^2 - |b|^2`, with
    `E[|v|^2] = N` put in where the probe is integrated out. Deviation: a Lipschitz bound divides
    the step by default.
    """

    # As in Diagonal: one sample of a small parameter must not lean on its own size.
    normaliser: Normaliser = LipschitzEMA(beta=0.99)
    dtype: torch.dtype | None = None

    name: ClassVar[str] = "Scalar"

    def __post_init__(self) -> None:
        check_parts(self.name, self.normaliser, self.dtype)

    @property
    def layout(self) -> str:
        """The name."""
        return self.name

    @property
    def needs_v(self) -> bool:
        """Return no: `E[|v|^2] = N` stands in for a probe."""
        return False

    def init(self, shape: tuple[int, ...], scale: Tensor, like: Tensor) -> State:
        """Return `q = scale`."""
        q = scale.to(like.device, state_dtype(like.real, self.dtype)).view(-1, 1).clone()
        return {
            "q": q,
            "l": torch.zeros_like(lift(q[:, 0])),
            "shape": q.new_empty(len(q), 0, *shape),
        }

    def draw(self, state: State, generator: torch.Generator) -> State:
        """Draw the bits that round a state in half precision; an update needs no others."""
        return draw_bits(state, generator)

    def update(self, state: State, probe: Probe, draws: State, rate: Tensor | float) -> None:
        """Take `q <- q (1 - rate / L (|a|^2 - |b|^2))` with `a = q h`, `b = v / q`; keeps q > 0."""
        q, h = lift(state["q"]), probe.h.flatten(1)
        t1 = abs_square(q * h).sum(dim=1, keepdim=True)
        if probe.v is None:
            t2 = h.shape[1] / q.square()
        else:
            t2 = abs_square(probe.v.flatten(1) / q).sum(dim=1, keepdim=True)
        _descend(state, self.normaliser, (t1, t2), draws, rate)

    def apply(self, state: State, x: Tensor) -> Tensor:
        """Return `q^2 x`."""
        return (per_block(lift(state["q"]).square(), x) * x).to(x.dtype)

    def to_dense(self, state: State) -> Tensor:
        """Return the multiples of the identity, (B, N, N)."""
        elements = state["shape"].shape[2:].numel()
        return torch.diag_embed(lift(state["q"]).repeat(1, elements))

    def numel(self, shape: tuple[int, ...]) -> int:
        """Return 1."""
        return 1

    def describe(self, shape: tuple[int, ...]) -> str:
        """Return e.g. `Scalar(512, 128)`."""
        return f"{self.name}({', '.join(map(str, shape))})"


@final
class _Elements(GroupGradient):
    """The gradient of a direct sum of one-dimensional groups: every element has its own sizes."""

    def __init__(self, t1: Tensor, t2: Tensor) -> None:
        """Keep the terms.

        Args:
            t1: (B, ...), real.
            t2: Like `t1`.
        """
        self._t1, self._t2 = t1, t2

    def max_entry(self) -> Tensor:
        """Return the moduli, the only entries."""
        return (self._t1 - self._t2).abs()

    def spectral_norm(self) -> Tensor:
        """Return the moduli."""
        return self.max_entry()

    def frobenius_norm(self) -> Tensor:
        """Return the moduli."""
        return self.max_entry()

    def curvature(self) -> Tensor:
        """Return the sums."""
        return self._t1 + self._t2


def _descend(
    state: State,
    normaliser: Normaliser,
    terms: tuple[Tensor, Tensor],
    draws: State,
    rate: Tensor | float,
) -> None:
    """Take `q <- q (1 - rate / L (t1 - t2))` in place, with as many steps as `l` has numbers.

    Args:
        state: `q`, (B, ...), and `l`, (B,) or of the shape of `q`.
        normaliser: What divides the step size.
        terms: `t1` and `t2`, of the shape of `q`, real.
        draws: With the bits for rounding.
        rate: Step size, a number or (B,).
    """
    (t1, t2), q, old = terms, lift(state["q"]), state["l"]
    gradient: GroupGradient = _Elements(t1, t2) if old.ndim == q.ndim else VectorGradient(t1, t2)
    bound = normaliser.grow(old, gradient)
    # A sample too large for its square says nothing: what it should have moved stays as it is.
    safe = bound.isfinite()
    state["l"].copy_(torch.where(safe, bound, old))
    if bound.ndim < q.ndim:
        bound, safe = per_block(bound, q), per_block(safe, q)
    step = (per_block(rate, q) if isinstance(rate, Tensor) and rate.ndim else rate) / bound
    write_(state, "q", torch.where(safe, q * (1 - step * (t1 - t2)), q), draws)
