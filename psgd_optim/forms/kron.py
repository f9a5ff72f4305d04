"""The Kronecker form: one small factor per axis of a tensor of any order."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from psgd_optim.axis_plan import plan_axes
from psgd_optim.factors import Factor
from psgd_optim.forms.base import Preconditioner, state_dtype
from psgd_optim.geometry import Q0_5EQ1_5, Geometry
from psgd_optim.linalg import lift, per_block
from psgd_optim.step_size import LipschitzEMA
from psgd_optim.types import Probe, State


@final
@dataclass(frozen=True, kw_only=True)
class Kron(Preconditioner):
    """`Q = Q_1 ⊗ ... ⊗ Q_k`, a dense or diagonal factor for each axis.

    State, for axis `i` of size `n`: `q{i}`, (B, n, n) or (B, n), and the step's curvature bound
    `l{i}`, (B,), in single precision or better.

    Args:
        max_size: Longest axis that gets a dense factor.
        max_skew: An axis gets a dense factor only if its squared size is at most this times the
            number of elements. 1 gives the long side of a matrix a diagonal; `math.inf` never does.
        geometry: The coordinates of an update.
        normaliser: What divides the step size.
        dtype: The factors' real dtype, e.g. `torch.bfloat16`; `None` is the parameters' dtype,
            at least single precision. Updates compute in single precision or better.

    Raises:
        ValueError: If `max_size` or `max_skew` is negative.

    Source: S0 (13) for the form; design formulas 8.0 and 8.1 for the update. Deviation: factors
    are balanced after every update, by powers of two, instead of exactly at random: this costs
    no rounding, and leaves no random branch.
    """

    max_size: float = 8192
    max_skew: float = 1.0
    geometry: Geometry = Q0_5EQ1_5
    normaliser: LipschitzEMA = LipschitzEMA()
    dtype: torch.dtype | None = None

    name: ClassVar[str] = "Kron"

    def __post_init__(self) -> None:
        for field in ("max_size", "max_skew"):
            value = getattr(self, field)
            if not value >= 0:
                raise ValueError(f"Kron got {field} = {value}; give a number of at least 0.")

    def _plan(self, shape: tuple[int, ...]) -> tuple[Factor, ...]:
        return plan_axes(tuple(shape), self.max_size, self.max_skew)

    def _sizes(self, state: State) -> tuple[int, ...]:
        return tuple(state[f"q{i}"].shape[-1] for i in range(len(state) // 2))

    def init(self, shape: tuple[int, ...], scale: Tensor, like: Tensor) -> State:
        """Return `Q = scale * I`, the scale shared equally by the factors.

        Args:
            shape: The shape of one parameter, with at least one axis.
            scale: (B,).
            like: A tensor with the parameters' dtype and device.

        Returns:
            The state.

        Raises:
            ValueError: If the shape has no axis.
        """
        if not shape:
            raise ValueError("Kron got a shape without axes; view a scalar as (1,).")
        dtype = state_dtype(like, self.dtype)
        share = (scale ** (1 / len(shape))).to(like.device, dtype)
        state: State = {}
        for i, (factor, n) in enumerate(zip(self._plan(shape), shape, strict=True)):
            state[f"q{i}"] = factor.init(n, share)
            state[f"l{i}"] = torch.zeros_like(lift(share.real))
        return state

    def draw(self, state: State, generator: torch.Generator) -> State:
        """Draw the rows that norm estimates start from, `start{i}` for each dense axis."""
        # The estimate needs more rows where the factor itself is coarse (design formulas 8.3).
        rows = 128 if state["q0"].dtype in (torch.bfloat16, torch.float16) else 32
        draws: State = {}
        for i, factor in enumerate(self._plan(self._sizes(state))):
            start = factor.start(state[f"q{i}"], rows, generator)
            if start is not None:
                draws[f"start{i}"] = start
        return draws

    def update(self, state: State, probe: Probe, draws: State, rate: Tensor | float) -> None:
        """Fit the factors to one sample; keeps det(Q) > 0 for rates up to 0.87.

        The norm bound behind the step may be that part of the true norm.
        """
        factors = self._plan(probe.h.shape[1:])
        image, qs = self._precondition(state, probe.h)  # P h
        elements = image[0].numel()
        moved, safe = [], torch.ones_like(state["l0"], dtype=torch.bool)
        for i, (factor, q) in enumerate(zip(factors, qs, strict=True)):
            t1 = factor.gram(image, i)
            t2 = elements / q.shape[-1] if probe.v is None else factor.gram(probe.v, i)
            start = draws.get(f"start{i}")
            bound = self.normaliser.grow(state[f"l{i}"], factor.curvature(t1, t2, start))
            step = rate / bound  # (B,)
            moved.append(factor.move(self.geometry, q, factor.difference(t1, t2), step, start))
            # A sample too large for the sum of its squares says nothing: its row stays as it is.
            safe = safe & bound.isfinite()
            state[f"l{i}"].copy_(torch.where(bound.isfinite(), bound, state[f"l{i}"]))
        for i, (new, old) in enumerate(zip(_balance(moved), qs, strict=True)):
            state[f"q{i}"].copy_(torch.where(per_block(safe, new), new, old))

    def _precondition(self, state: State, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return `P x` and the factors, in the dtype that an update computes in."""
        dtype = torch.promote_types(state["q0"].dtype, lift(x).dtype)
        x, qs = x.to(dtype), []
        for i, factor in enumerate(self._plan(x.shape[1:])):
            q = state[f"q{i}"].to(dtype)
            x = factor.precondition(q, x, i)
            qs.append(q)
        return x, qs

    def apply(self, state: State, x: Tensor) -> Tensor:
        """Return `P x`, one axis after the other."""
        return self._precondition(state, x)[0].to(x.dtype)

    def to_dense(self, state: State) -> Tensor:
        """Return the Kronecker product of the factors, (B, N, N)."""
        factors = self._plan(self._sizes(state))
        dense = factors[0].matrix(lift(state["q0"]))
        for i, factor in enumerate(factors[1:], start=1):
            m = factor.matrix(lift(state[f"q{i}"]))
            product = torch.einsum("bij,bkl->bikjl", dense, m)
            n = dense.shape[-1] * m.shape[-1]
            dense = product.reshape(-1, n, n)
        return dense

    def numel(self, shape: tuple[int, ...]) -> int:
        """Return the sum over the axes of n^2 (dense) or n (diagonal)."""
        return sum(f.numel(n) for f, n in zip(self._plan(shape), shape, strict=True))

    def describe(self, shape: tuple[int, ...]) -> str:
        """Return e.g. `Kron(512 diagonal, 128 dense)`."""
        axes = (f"{n} {f.name}" for f, n in zip(self._plan(shape), shape, strict=True))
        return f"{self.name}({', '.join(axes)})"


def _balance(qs: list[Tensor]) -> list[Tensor]:
    """Return the factors with largest entries of about the same size."""
    # The scales are powers of two with product one: neither P nor a mantissa changes.
    if len(qs) == 1:
        return qs
    peaks = torch.stack([q.abs().flatten(1).amax(dim=1) for q in qs])  # (k, B)
    peaks = peaks.clamp(min=torch.finfo(peaks.dtype).tiny).log2()
    shifts = (peaks.mean(dim=0) - peaks).round()
    shifts[0] -= shifts.sum(dim=0)
    return [q * per_block(s.exp2(), q) for q, s in zip(qs, shifts, strict=True)]
