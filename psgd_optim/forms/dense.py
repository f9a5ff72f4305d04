"""The dense form: one matrix for a whole parameter, the richest and largest."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from psgd_optim.factors.matrix import GENERAL, MatrixFactor
from psgd_optim.forms.base import Preconditioner, check_parts, state_dtype
from psgd_optim.frames import as_matrix, check_factors, images, precondition
from psgd_optim.geometry import QUAD, Frame, Geometry
from psgd_optim.linalg import both, finite_rows, keep_rows, known, lift
from psgd_optim.rounding import draw_bits, is_half, write_
from psgd_optim.step_size import LipschitzEMA, Normaliser
from psgd_optim.types import Probe, State


@final
@dataclass(frozen=True, kw_only=True)
class Dense(Preconditioner):
    """Any `Q`, or any upper triangular one, for the row-major flattened parameter of `N` elements.

    For small parameters: memory and time of an update grow with `N^2` (`N^3` where the geometry
    rotates, or solves with a general matrix). State: `q`, (B, N, N), and the step's divisor `l`,
    (B,), in single precision or better.

    Args:
        geometry: The coordinates of an update. `QUAD` costs `N^2`, solves nothing and needs neither
            `v` nor random numbers; EQ does not depend on the parameters' coordinates.
        factor: `GENERAL`, or `TRIANGULAR` with geometry EQ.
        normaliser: What divides the step size; `MaxEntry` with a triangle only.
        dtype: The dtype of `q`, e.g. `torch.bfloat16`; `None` is the parameters' dtype, at least
            single precision. Updates compute in single precision or better, and round half
            precision stochastically.

    Raises:
        ValueError: If the geometry does not keep the factor's pattern, or needs a finer dtype; if
            the normaliser does not bound the step of a full matrix.

    Source: S0 C.1, S1 (18) for EQ; algorithms 4.1 and 4.2; design formulas 8.4. Deviation: a
    triangular update is a cumulative sum in `N^2`, not a matrix product in `N^3`.
    """

    geometry: Geometry = QUAD
    factor: MatrixFactor = GENERAL
    normaliser: Normaliser = LipschitzEMA()
    dtype: torch.dtype | None = None

    name: ClassVar[str] = "Dense"

    def __post_init__(self) -> None:
        check_parts(self.name, self.normaliser, self.dtype)
        check_factors(self.name, self.geometry, (self.factor,), self.normaliser, self.dtype)

    @property
    def layout(self) -> str:
        """The name and what else the numbers depend on."""
        return f"{self.name}({self.geometry.name}, {self.factor.name})"

    @property
    def needs_v(self) -> bool:
        """Whether the geometry needs `v`: EQ does, and QEP, whose mean term has a high rank."""
        return self.geometry.frame is not Frame.RIGHT

    def init(self, shape: tuple[int, ...], scale: Tensor, like: Tensor) -> State:
        """Return `Q = scale * I`."""
        power = 2 if self.geometry.fits_p else 1
        own = (scale**power).to(like.device, state_dtype(like, self.dtype))
        n = torch.Size(shape).numel()
        return {"q": self.factor.init(n, own), "l": torch.zeros_like(lift(own.real))}

    def draw(self, state: State, generator: torch.Generator) -> State:
        """Draw the rows that the norm of a rotation starts from, and bits for rounding."""
        draws: State = {}
        if self.geometry.rotate is not None:
            rows = 128 if is_half(state["q"].dtype) else 32
            start = self.factor.start(state["q"], rows, generator)
            draws = {} if start is None else {"start": start}
        return draws | draw_bits(state, generator)

    def update(self, state: State, probe: Probe, draws: State, rate: Tensor | float) -> None:
        """Fit `Q` to one sample; keeps det(Q) > 0 for rates below 1."""
        q, h = self._computed(state, probe.h)
        v = None if probe.v is None else probe.v.reshape(h.shape)
        a, b = images(self.geometry, (self.factor,), (q,), Probe(h=h, v=v))
        if self.geometry.frame is Frame.BOTH:
            if b is None:
                raise ValueError("Dense got a sample without v with geometry QEP; give Probe both.")
            a, b = self.factor.multiply(q, a, 0), self.factor.multiply(q, b, 0)
        gradient = self.factor.rank_two(a, b)
        bound = self.normaliser.grow(state["l"], gradient)
        moved = self.geometry.move(q, gradient, rate / bound, draws.get("start"))
        # A sample too large for its square, or for its product with Q, says nothing: its row stays.
        safe = both(known(bound < math.inf), finite_rows(moved))
        write_(state, "q", keep_rows(safe, moved, q), draws)
        state["l"].copy_(keep_rows(safe, bound, state["l"]))

    def _computed(self, state: State, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `Q` and flattened `x` in the dtype to compute in."""
        dtype = torch.promote_types(state["q"].dtype, lift(x).dtype)
        return state["q"].to(dtype), x.reshape(len(x), -1).to(dtype)

    def apply(self, state: State, x: Tensor) -> Tensor:
        """Return `P x`."""
        q, flat = self._computed(state, x)
        return precondition(self.geometry, (self.factor,), (q,), flat).to(x.dtype).view(x.shape)

    def to_dense(self, state: State) -> Tensor:
        """Return `Q` itself, or the Hermitian root of what is stored where that is `P`."""
        return as_matrix(self.geometry, self.factor, lift(state["q"]))

    def numel(self, shape: tuple[int, ...]) -> int:
        """Return N^2, or N (N + 1) / 2 for a triangle."""
        return self.factor.numel(torch.Size(shape).numel())

    def describe(self, shape: tuple[int, ...]) -> str:
        """Return e.g. `Dense(12 dense)`."""
        return f"{self.name}({torch.Size(shape).numel()} {self.factor.name})"
