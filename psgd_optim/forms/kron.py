"""The Kronecker form: one small factor per axis of a tensor of any order."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from psgd_optim.axis_plan import Plan, SizePlan, plan_by_size
from psgd_optim.factors.base import Factor
from psgd_optim.forms.base import Preconditioner, check_parts, state_dtype
from psgd_optim.frames import (
    as_matrix,
    check_factors,
    operators,
    precondition_axis,
    sample_gradients,
)
from psgd_optim.geometry import Q0_5EQ1_5, Frame, Geometry
from psgd_optim.group_gradient import FactorGradient
from psgd_optim.linalg import (
    Mask,
    both,
    cast,
    finite_rows,
    keep_rows,
    known,
    lift,
    per_block,
    row_peaks,
    surely,
)
from psgd_optim.rounding import draw_bits, is_half, write_
from psgd_optim.step_size import LipschitzEMA, Normaliser
from psgd_optim.types import Probe, State, expect


@final
@dataclass(frozen=True, kw_only=True)
class Kron(Preconditioner):
    """`Q = Q_1 ⊗ ... ⊗ Q_k`, one factor for each axis.

    State, for axis `i` of size `n`: `q{i}`, (B, n, n), (B, n) or (B, 2, n), and the step's divisor
    `l{i}`, (B,), in single precision or better.

    Args:
        max_size: Longest axis that gets a dense factor.
        max_skew: An axis gets a dense factor only if its squared size is at most this times the
            number of elements. 1 gives the long side of a matrix a diagonal; `math.inf` never does.
        plan: Which factor each axis gets, instead of the choice by these two numbers.
        geometry: The coordinates of an update; EQ is the one for triangular and normalisation
            factors.
        normaliser: What divides the step size. `MaxEntry` is for plans without full matrices, whose
            norm may be many times their largest entry.
        dtype: The factors' real dtype, e.g. `torch.bfloat16`; `None` is the parameters' dtype,
            at least single precision. Updates compute in single precision or better, and round half
            precision stochastically, so that small steps are not lost; in bfloat16 the rounding of
            heavy-tailed fits may flip the sign of det(Q), which does P no harm.

    Raises:
        ValueError: If `max_size` or `max_skew` is negative, or not the default beside a plan; if
            the geometry does not keep a factor's pattern, or needs a finer dtype.

    Source: S0 (13) for the form; design formulas 8.0 and 8.1 for the update; algorithms 4.5 to 4.8
    for the plans. Deviation: factors are balanced after every update, by powers of two, instead of
    exactly at random: this costs no rounding, and leaves no random branch.
    """

    max_size: float = SizePlan.max_size
    max_skew: float = SizePlan.max_skew
    plan: Plan | None = None
    geometry: Geometry = Q0_5EQ1_5
    normaliser: Normaliser = LipschitzEMA()
    dtype: torch.dtype | None = None

    name: ClassVar[str] = "Kron"

    def __post_init__(self) -> None:
        check_parts(self.name, self.normaliser, self.dtype)
        by_size = SizePlan(max_size=self.max_size, max_skew=self.max_skew)
        if self.plan is not None and by_size != SizePlan():
            raise ValueError(
                f"Kron got max_size = {self.max_size}, max_skew = {self.max_skew} and a plan; "
                "give either, or the numbers to SizePlan."
            )
        if self.plan is not None:
            expect(self.name, "plan", self.plan, Plan, "one of axis_plan, like SCAN")
        check_factors(self.name, self.geometry, self._kinds, self.normaliser, self.dtype)

    @property
    def _kinds(self) -> tuple[Factor, ...]:
        return (self.plan or SizePlan()).kinds

    @property
    def layout(self) -> str:
        """The name and what else the numbers depend on."""
        kinds = ", ".join(kind.name for kind in self._kinds)
        return f"{self.name}({self.geometry.name}: {kinds})"

    @property
    def needs_v(self) -> bool:
        """Whether the geometry needs `v`: EQ does."""
        return self.geometry.frame is Frame.LEFT

    def _factors(self, shape: tuple[int, ...]) -> tuple[Factor, ...]:
        # No SizePlan is made here: a compiled graph cannot hold a new one.
        if self.plan is None:
            return plan_by_size(tuple(shape), self.max_size, self.max_skew)
        return self.plan.factors(tuple(shape))

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
            ValueError: If the shape has no axis, or not as many as the plan.
        """
        if not shape:
            raise ValueError("Kron got a shape without axes; view a scalar as (1,).")
        dtype = state_dtype(like, self.dtype)
        power = 2 if self.geometry.fits_p else 1
        share = (scale ** (power / len(shape))).to(like.device, dtype)
        state: State = {}
        for i, (factor, n) in enumerate(zip(self._factors(shape), shape, strict=True)):
            state[f"q{i}"] = factor.init(n, share)
            state[f"l{i}"] = torch.zeros_like(lift(share.real))
        return state

    def draw(self, state: State, generator: torch.Generator) -> State:
        """Draw `start{i}`, rows for the norm estimates of dense axes, and bits for rounding."""
        # The estimate needs more rows where the factor itself is coarse (design formulas 8.3).
        rows = 128 if is_half(state["q0"].dtype) else 32
        draws: State = {}
        for i, factor in enumerate(self._factors(self._sizes(state))):
            start = factor.start(state[f"q{i}"], rows, generator)
            if start is not None:
                draws[f"start{i}"] = start
        return draws | draw_bits(state, generator)

    def update(self, state: State, probe: Probe, draws: State, rate: Tensor | float) -> None:
        """Fit the factors to one sample; keeps det(Q) > 0 for rates up to 0.84.

        The norm bound behind the step may be that part of the true norm, up to n = 2048.
        """
        factors, qs = self._computed(state, probe.h)
        starts = [draws.get(f"start{i}") for i in range(len(qs))]
        gradients = sample_gradients(self.geometry, factors, qs, probe, starts)
        moved, safe = self.move(state, qs, gradients, starts, rate)
        for i, (new, old) in enumerate(zip(_balance(moved), qs, strict=True)):
            write_(state, f"q{i}", keep_rows(safe, new, old), draws)

    def move(
        self,
        state: State,
        qs: Sequence[Tensor],
        gradients: Sequence[FactorGradient],
        starts: Sequence[Tensor | None],
        rate: Tensor | float,
    ) -> tuple[list[Tensor], Mask]:
        """Return the factors after one step against given gradients, and which rows took it.

        Args:
            state: Its divisors `l{i}` move on; nothing else is read.
            qs: The factors' numbers, in the dtype to compute in.
            gradients: One per axis.
            starts: The random rows of each axis, if any.
            rate: Step size, a number or (B,).

        Returns:
            The factors, not balanced, and the rows whose sample was not too large.
        """
        moved, bounds = [], []
        safe: Mask = None
        for i, (q, gradient, start) in enumerate(zip(qs, gradients, starts, strict=True)):
            bounds.append(self.normaliser.grow(state[f"l{i}"], gradient))
            moved.append(self.geometry.move(q, gradient, rate / bounds[i], start))
            # A sample too large for the sum of its squares, or for its product with Q, says
            # nothing: its row stays as it is.
            safe = both(safe, known(bounds[i] < math.inf), finite_rows(moved[i]))
        for i, bound in enumerate(bounds):
            state[f"l{i}"].copy_(keep_rows(safe, bound, state[f"l{i}"]))
        return moved, safe

    def _computed(self, state: State, x: Tensor) -> tuple[tuple[Factor, ...], list[Tensor]]:
        """Return the factors and their numbers, in the dtype to compute in with `x`."""
        dtype = torch.promote_types(state["q0"].dtype, lift(x).dtype)
        factors = self._factors(x.shape[1:])
        return factors, [cast(state[f"q{i}"], dtype) for i in range(len(factors))]

    @property
    def wants_image(self) -> bool:
        """Whether the curvature terms come from `P h`: not with EQ."""
        return self.geometry.frame is not Frame.LEFT

    def prepare(self, state: State, uses: float) -> State:
        """Return factors of `P`, `p{i}`, in single precision or better, and `q{i}` for the rest."""
        shape = self._sizes(state)
        qs = [lift(state[f"q{i}"]) for i in range(len(shape))]
        ps = operators(self.geometry, self._factors(shape), qs, shape, uses)
        pairs = enumerate(zip(ps, qs, strict=True))
        return {f"q{i}" if p is None else f"p{i}": q if p is None else p for i, (p, q) in pairs}

    def apply(self, state: State, x: Tensor) -> Tensor:
        """Return `P x`, one axis after the other."""
        first = state["p0"] if "p0" in state else state["q0"]
        dtype = torch.promote_types(first.dtype, lift(x).dtype)
        y = cast(x, dtype)
        for i, factor in enumerate(self._factors(x.shape[1:])):
            p = state.get(f"p{i}")
            if p is None:
                q = cast(state[f"q{i}"], dtype)
                y = precondition_axis(self.geometry, factor, q, y, i)
            else:
                y = factor.multiply(cast(p, dtype), y, i)
        return cast(y, x.dtype)

    def to_dense(self, state: State) -> Tensor:
        """Return the Kronecker product of the factors, (B, N, N).

        Where the factors are those of `P`, it is the product of their Hermitian roots.
        """
        factors = self._factors(self._sizes(state))
        stacks = [as_matrix(self.geometry, f, lift(state[f"q{i}"])) for i, f in enumerate(factors)]
        return functools.reduce(_kron, stacks)

    def numel(self, shape: tuple[int, ...]) -> int:
        """Return the sum over the axes, e.g. of n^2 (dense) or n (diagonal)."""
        return sum(f.numel(n) for f, n in zip(self._factors(shape), shape, strict=True))

    def describe(self, shape: tuple[int, ...]) -> str:
        """Return e.g. `Kron(512 diagonal, 128 dense)`."""
        axes = (f"{n} {f.name}" for f, n in zip(self._factors(shape), shape, strict=True))
        return f"{self.name}({', '.join(axes)})"


def _kron(a: Tensor, b: Tensor) -> Tensor:
    """Return the Kronecker product of two stacks of matrices."""
    n = a.shape[-1] * b.shape[-1]
    return torch.einsum("bij,bkl->bikjl", a, b).reshape(-1, n, n)


def _balance(qs: list[Tensor]) -> list[Tensor]:
    """Return the factors with largest entries of about the same size."""
    # The scales are powers of two with product one: neither P nor a mantissa changes.
    if len(qs) == 1:
        return qs
    peaks = torch.stack([row_peaks(q) for q in qs])  # (k, B)
    peaks = peaks.clamp(min=torch.finfo(peaks.dtype).tiny).log2()
    shifts = (peaks.mean(dim=0) - peaks).round()
    shifts[0] -= shifts.sum(dim=0)
    if surely(shifts == 0):
        return qs
    return [q * per_block(s.exp2(), q) for q, s in zip(qs, shifts, strict=True)]
