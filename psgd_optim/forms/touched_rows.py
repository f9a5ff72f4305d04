"""The form of embeddings: rows without a gradient cost next to nothing and do not move.

Shape legend: a parameter is (I, D), `I` tokens by `D` dimensions; a step sees `t` of the rows.
"""

from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor

from psgd_optim.axis_plan import AxisPlan
from psgd_optim.factors.base import Factor
from psgd_optim.factors.diagonal import DIAGONAL
from psgd_optim.factors.matrix import GENERAL
from psgd_optim.forms.base import Preconditioner, SparseForm, check_parts
from psgd_optim.forms.kron import Kron
from psgd_optim.frames import check_factors, curvature_terms, factor_gradient
from psgd_optim.geometry import Q0_5EQ1_5, Geometry
from psgd_optim.linalg import keep_rows, lift
from psgd_optim.rounding import is_half, rounded, write_
from psgd_optim.row_fit import LazyRows, RowFit
from psgd_optim.step_size import LipschitzEMA, Normaliser
from psgd_optim.types import Probe, State


@final
@dataclass(frozen=True, kw_only=True)
class TouchedRows(SparseForm):
    """`Q = diag(q) ⊗ Q_D` for embeddings: rows without a gradient keep their bits.

    The rows (tokens) are scaled, the columns whitened. For an encoder, which the paper writes D x
    I, this is its whitening-and-scaling; for a decoder, I x (D + 1), its scaling-and-whitening:
    with one row per token the two are the same form. Takes the sparse gradients of
    `nn.Embedding(sparse=True)`, and dense ones as if every row had one.

    State: `q0`, (B, I), `q1`, (B, D, D) or as the columns' factor has it, and the steps' divisors
    `l0` and `l1`, (B,). The factors are not balanced, which would move the numbers of every row.

    Args:
        rows: What rows without a gradient mean to the fit: `LazyRows()` or `ExactRows()`.
        columns: The factor of the columns, e.g. `GENERAL`, `TRIANGULAR` (with EQ) or `DIAGONAL`.
        geometry: The coordinates of an update.
        normaliser: What divides the step size.
        dtype: The factors' real dtype; `None` is the parameters' dtype, at least single precision.
            Half precision is rounded stochastically.

    Raises:
        ValueError: If the geometry does not keep a factor's pattern, or needs a finer dtype.

    Source: S1 appendix A; algorithms 4.9. The update is that of `Kron`.
    """

    rows: RowFit = LazyRows()  # noqa: RUF009 -- frozen and without state
    columns: Factor = GENERAL
    geometry: Geometry = Q0_5EQ1_5
    normaliser: Normaliser = LipschitzEMA()
    dtype: torch.dtype | None = None
    _kron: Kron = field(init=False, repr=False, compare=False)

    name: ClassVar[str] = "TouchedRows"

    def __post_init__(self) -> None:
        check_parts(self.name, self.normaliser, self.dtype)
        check_factors(self.name, self.geometry, (self.columns,), self.normaliser, self.dtype)
        kron = Kron(
            plan=AxisPlan((DIAGONAL, self.columns)),
            geometry=self.geometry,
            normaliser=self.normaliser,
            dtype=self.dtype,
        )
        object.__setattr__(self, "_kron", kron)

    @property
    def layout(self) -> str:
        """The name and what else the numbers depend on."""
        return f"{self.name}({self.geometry.name}: {self.columns.name})"

    @property
    def needs_v(self) -> bool:
        """Whether the geometry needs `v`: EQ does."""
        return self._kron.needs_v

    def init(self, shape: tuple[int, ...], scale: Tensor, like: Tensor) -> State:
        """Return `Q = scale * I`, the scale shared equally by the factors.

        Args:
            shape: The shape of one parameter, (I, D).
            scale: (B,).
            like: A tensor with the parameters' dtype and device.

        Returns:
            The state.

        Raises:
            ValueError: If the shape has not two axes.
        """
        if len(shape) != 2:
            raise ValueError(
                f"TouchedRows got a parameter of shape {tuple(shape)}; give it matrices with a row "
                "per token, and other parameters another form (DirectSum)."
            )
        return self._kron.init(shape, scale, like)

    def draw(self, state: State, generator: torch.Generator) -> State:
        """Draw `start1`, rows for the norm estimates of dense columns, and bits for rounding."""
        return self._kron.draw(state, generator)

    def update(self, state: State, probe: Probe, draws: State, rate: Tensor | float) -> None:
        """Fit the factors to a sample of all rows; keeps det(Q) > 0 for rates up to 0.84."""
        self._fit(state, probe, draws, rate, None)

    def apply(self, state: State, x: Tensor) -> Tensor:
        """Return `P x` for all rows."""
        return self._kron.apply(state, x)

    def at(self, shape: tuple[int, ...], index: Tensor) -> Preconditioner:
        """Return the form of some rows: it reads and writes the state of all of them."""
        return _At(self, shape, index)

    def _fit(
        self, state: State, probe: Probe, draws: State, rate: Tensor | float, index: Tensor | None
    ) -> None:
        """Fit to the sample of some rows, or of all."""
        dtype = torch.promote_types(state["q0"].dtype, lift(probe.h).dtype)
        factors = (DIAGONAL, self.columns)
        columns, rows = state["q1"].to(dtype), state["q0"]
        seen = rows.to(dtype) if index is None else rows[:, index].to(dtype)
        terms = curvature_terms(self.geometry, factors, (seen, columns), probe)
        if index is not None:
            seen = self.rows.moving(rows, index).to(dtype)
            terms = self.rows.terms(self.geometry, self.columns, (seen, columns), index, terms)
        starts = (draws.get("start0"), draws.get("start1"))
        parts = zip(factors, (seen, columns), terms, starts, strict=True)
        gradients = [factor_gradient(self.geometry, *part) for part in parts]
        moved, safe = self._kron.move(state, (seen, columns), gradients, starts, rate)
        new = rounded(keep_rows(safe, moved[0], seen), "q0", rows.dtype, draws)
        if index is None:
            rows.copy_(new)
        else:
            self.rows.put(rows, index, new)
        write_(state, "q1", keep_rows(safe, moved[1], columns), draws)

    def to_dense(self, state: State) -> Tensor:
        """Return the Kronecker product of the factors, (B, N, N)."""
        return self._kron.to_dense(state)

    def numel(self, shape: tuple[int, ...]) -> int:
        """Return e.g. I + D^2 for dense columns."""
        return self._kron.numel(shape)

    def describe(self, shape: tuple[int, ...]) -> str:
        """Return e.g. `TouchedRows(50000 diagonal, 128 dense)`."""
        return self._kron.describe(shape).replace(self._kron.name, self.name, 1)


@final
class _At(Preconditioner):
    """Some rows of a `TouchedRows`: its state is that of all rows, its samples are of some."""

    name: ClassVar[str] = TouchedRows.name

    def __init__(self, form: TouchedRows, shape: tuple[int, ...], index: Tensor) -> None:
        """Keep the form, the shape of the whole parameter and the row numbers (t,)."""
        self._form = form
        self._shape = shape
        self._index = index

    @property
    def layout(self) -> str:
        """The form's."""
        return self._form.layout

    @property
    def needs_v(self) -> bool:
        """Whether the form does."""
        return self._form.needs_v

    def init(self, shape: tuple[int, ...], scale: Tensor, like: Tensor) -> State:
        """Return the state of all rows, whatever the shape of the sample."""
        return self._form.init(self._shape, scale, like)

    def draw(self, state: State, generator: torch.Generator) -> State:
        """Draw as the form does, with bits for the numbers that move."""
        if is_half(state["q0"].dtype):
            state = {**state, "q0": self._form.rows.moving(state["q0"], self._index)}
        return self._form.draw(state, generator)

    def update(self, state: State, probe: Probe, draws: State, rate: Tensor | float) -> None:
        """Fit the factors to a sample (B, t, D) of the rows."""
        self._form._fit(state, probe, draws, rate, self._index)

    def apply(self, state: State, x: Tensor) -> Tensor:
        """Return the rows (B, t, D) of `P x`."""
        return self._form.apply({**state, "q0": state["q0"][:, self._index]}, x)

    def to_dense(self, state: State) -> Tensor:
        """Return `Q` of the rows alone, (B, t D, t D)."""
        return self._form.to_dense({**state, "q0": state["q0"][:, self._index]})

    def numel(self, shape: tuple[int, ...]) -> int:
        """Return the numbers of the whole parameter's `Q`."""
        return self._form.numel(self._shape)

    def describe(self, shape: tuple[int, ...]) -> str:
        """Return the plan for the whole parameter."""
        return self._form.describe(self._shape)
