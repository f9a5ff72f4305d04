"""The sparse LU form: two triangular factors with a few full columns and a diagonal rest."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from psgd_optim.arrow import Arrow, ArrowGradient, largest
from psgd_optim.forms.base import Preconditioner, check_parts, state_dtype
from psgd_optim.linalg import lift, per_block
from psgd_optim.rounding import draw_bits, write_
from psgd_optim.step_size import LipschitzEMA, Normaliser
from psgd_optim.types import Probe, State


@final
@dataclass(frozen=True, kw_only=True)
class SparseLU(Preconditioner):
    """`Q = L U` on the flattened parameter: `L` and `U^H` are arrow matrices of rank `r`.

    Takes O(r N) memory and time; with rank 0 it has the fixed points of `Diagonal`, with rank `N`
    those of a dense form. State: `lower_columns`, `lower_tail` of `L`; `upper_columns`,
    `upper_tail` of `U^H`; the steps' bounds `l_lower` and `l_upper`, (B, 2), of columns and tail.
    Diagonals are real and positive, tails are stored as real numbers.

    Args:
        rank: `r`, the number of full columns, at least 0; smaller parameters use their size.
        normaliser: What divides the step size, separately for `L` and `U`: `LipschitzEMA` the
            columns' and the tail's each by a bound of its own, the others both by one size.
        dtype: The factors' real dtype; `None` is the parameters' dtype, at least single precision.
            Updates compute in single precision or better, and round half precision stochastically.

    Raises:
        ValueError: If `rank` is negative.

    Source: S0 III.B.3 and C.4, algorithms 4.4. Deviations: the divisors are Lipschitz bounds, not
    the largest entry, and columns and tail have one each; `L` and `U` are balanced by powers of
    two, after the update; complex parameters are allowed, with a real diagonal.
    """

    rank: int = 10
    normaliser: Normaliser = LipschitzEMA()
    dtype: torch.dtype | None = None

    name: ClassVar[str] = "SparseLU"

    def __post_init__(self) -> None:
        check_parts(self.name, self.normaliser, self.dtype)
        if not isinstance(self.rank, int) or self.rank < 0:
            raise ValueError(f"SparseLU got rank = {self.rank}; give a whole number of at least 0.")

    @property
    def layout(self) -> str:
        """The name."""
        return self.name

    @property
    def needs_v(self) -> bool:
        """Return True: the images of `v` cannot be integrated out in O(r N)."""
        return True

    def init(self, shape: tuple[int, ...], scale: Tensor, like: Tensor) -> State:
        """Return `Q = scale * I`, the scale shared equally by `L` and `U`."""
        n = torch.Size(shape).numel()
        r = min(self.rank, n)
        dtype = state_dtype(like, self.dtype)
        share = scale.sqrt().to(like.device, dtype)
        eye = torch.eye(n, r, dtype=dtype, device=like.device)
        state: State = {}
        for factor in ("lower", "upper"):
            state[f"{factor}_columns"] = per_block(share, eye[None]) * eye
            state[f"{factor}_tail"] = share.real[:, None].repeat(1, n - r)
            state[f"l_{factor}"] = torch.zeros_like(lift(share.real))[:, None].repeat(1, 2)
        return state

    def draw(self, state: State, generator: torch.Generator) -> State:
        """Draw the bits that round a state in half precision; an update needs no others."""
        return draw_bits(state, generator)

    def update(self, state: State, probe: Probe, draws: State, rate: Tensor | float) -> None:
        """Move `L` and `U`, both from the old values; keeps their diagonals positive.

        Raises:
            ValueError: If the probe has no `v`.
        """
        if probe.v is None:
            raise ValueError("SparseLU got a probe without v; give one, as needs_v says.")
        lower, upper = _arrows(state, probe.h)
        dtype = lower.columns.dtype
        h, v = probe.h.flatten(1).to(dtype), probe.v.flatten(1).to(dtype)
        a = lower.times(upper.adjoint_times(h))  # Q h
        p = upper.times(lower.adjoint_times(a))  # P h
        b = lower.adjoint_solve(upper.solve(v))  # Q^-H v
        w = upper.adjoint_solve(lower.solve(b))  # P^-1 v
        r = lower.columns.shape[-1]
        gradients = (ArrowGradient(a, a, b, b, r), ArrowGradient(h, p, w, v, r))
        bounds = [
            self.normaliser.grow(state[f"l_{name}"], gradient)
            for name, gradient in zip(_FACTORS, gradients, strict=True)
        ]
        # A sample too large for its squares says nothing: its row stays as it is.
        safe = torch.cat(bounds, dim=1).isfinite().all(dim=1)
        rates = torch.as_tensor(rate, dtype=bounds[0].dtype, device=bounds[0].device).view(-1, 1)
        moved = _balance(
            *(
                arrow.moved(gradient, (rates / bound).to(arrow.tail.dtype))
                for arrow, gradient, bound in zip((lower, upper), gradients, bounds, strict=True)
            )
        )
        for name, new, old, bound in zip(_FACTORS, moved, (lower, upper), bounds, strict=True):
            for part, x, y in zip(("columns", "tail"), new, old, strict=True):
                write_(state, f"{name}_{part}", torch.where(per_block(safe, x), x, y), draws)
            state[f"l_{name}"].copy_(torch.where(safe[:, None], bound, state[f"l_{name}"]))

    def apply(self, state: State, x: Tensor) -> Tensor:
        """Return `P x = U^H L^H L U x`, in O(r N)."""
        lower, upper = _arrows(state, x)
        y = upper.adjoint_times(x.flatten(1).to(lower.columns.dtype))
        y = upper.times(lower.adjoint_times(lower.times(y)))
        return y.to(x.dtype).view(x.shape)

    def to_dense(self, state: State) -> Tensor:
        """Return `L U`, (B, N, N)."""
        lower, upper = _arrows(state, state["lower_columns"])
        return lower.dense() @ upper.dense().mH

    def numel(self, shape: tuple[int, ...]) -> int:
        """Return `2 (r + 1) N - r^2 - r`; zeros above the diagonals are not counted."""
        n = torch.Size(shape).numel()
        r = min(self.rank, n)
        return 2 * (r + 1) * n - r * r - r

    def describe(self, shape: tuple[int, ...]) -> str:
        """Return e.g. `SparseLU(65536, rank 10)`."""
        n = torch.Size(shape).numel()
        return f"{self.name}({n}, rank {min(self.rank, n)})"


_FACTORS = ("lower", "upper")


def _arrows(state: State, like: Tensor) -> tuple[Arrow, Arrow]:
    """Return `L` and `U^H` in the dtype to compute in."""
    dtype = torch.promote_types(state["lower_columns"].dtype, state_dtype(like, None))
    real = torch.promote_types(state["lower_tail"].dtype, state_dtype(like.real, None))
    lower, upper = (
        Arrow(state[f"{name}_columns"].to(dtype), state[f"{name}_tail"].to(real))
        for name in _FACTORS
    )
    return lower, upper


def _balance(lower: Arrow, upper: Arrow) -> tuple[Arrow, Arrow]:
    """Return the factors with largest entries of about the same size and the same product."""
    # The scales are powers of two and each other's inverses: neither Q nor a mantissa changes.
    peaks = [
        torch.maximum(largest(a.columns.flatten(1)), largest(a.tail)).clamp(
            min=torch.finfo(a.tail.dtype).tiny
        )
        for a in (lower, upper)
    ]
    shift = (0.5 * (peaks[1].log2() - peaks[0].log2())).round()  # (B,)
    scales = (shift.exp2(), (-shift).exp2())
    first, second = (
        Arrow(a.columns * per_block(s, a.columns), a.tail * s[:, None])
        for a, s in zip((lower, upper), scales, strict=True)
    )
    return first, second
