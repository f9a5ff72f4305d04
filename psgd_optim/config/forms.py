"""Forms of the preconditioner as data: one small dataclass per form, by name."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from psgd_optim.axis_plan import (
    KRONECKER,
    SCALING_AND_SCALING,
    SCAN,
    SCAW,
    WHITENING_AND_SCALING,
    AxisPlan,
    SizePlan,
)
from psgd_optim.factors.base import Factor
from psgd_optim.factors.diagonal import DIAGONAL
from psgd_optim.factors.matrix import GENERAL, TRIANGULAR
from psgd_optim.forms.base import Preconditioner
from psgd_optim.forms.block_triangular import BlockTriangular
from psgd_optim.forms.closed_diagonal import ClosedDiagonal
from psgd_optim.forms.dense import Dense
from psgd_optim.forms.diagonal import Diagonal, Scalar
from psgd_optim.forms.kron import Kron
from psgd_optim.forms.low_rank import LowRank, Order
from psgd_optim.forms.permutation import Permutation
from psgd_optim.forms.sparse_lu import SparseLU
from psgd_optim.forms.touched_rows import TouchedRows
from psgd_optim.geometry import EQ, PRO4P, Q0_5EQ1_5, QEP, QEQ, QUAD, QUAD4P, Geometry
from psgd_optim.permutation_groups import BUTTERFLY, KLEIN, X_MATRIX, Cyclic, PermutationGroup
from psgd_optim.row_fit import ExactRows, LazyRows
from psgd_optim.scope import DirectSum, Joint, Scope, Split, by_axes
from psgd_optim.step_size import MaxEntry

GeometryName = Literal["EQ", "QEP", "QEQ", "Q0.5EQ1.5", "QUAD", "QUAD4P", "PRO4P"]
DTypeName = Literal["auto", "float32", "float64", "bfloat16"]
PlanName = Literal["scan", "scaw", "whitening-and-scaling", "scaling-and-scaling", "kronecker"]

_GEOMETRIES: dict[str, Geometry] = {
    geometry.name: geometry for geometry in (EQ, QEP, QEQ, Q0_5EQ1_5, QUAD, QUAD4P, PRO4P)
}
_DTYPES: dict[str, torch.dtype | None] = {
    "auto": None,
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
}
_PLANS: dict[str, AxisPlan] = {
    "scan": SCAN,
    "scaw": SCAW,
    "whitening-and-scaling": WHITENING_AND_SCALING,
    "scaling-and-scaling": SCALING_AND_SCALING,
    "kronecker": KRONECKER,
}
_COLUMNS: dict[str, Factor] = {
    "general": GENERAL,
    "triangular": TRIANGULAR,
    "diagonal": DIAGONAL,
}


def _scoped(form: Preconditioner, joint: bool) -> Preconditioner | Scope:
    return Joint(form) if joint else form


@dataclass(frozen=True, kw_only=True)
class KronForm:
    """A factor for every axis of a parameter."""

    name: ClassVar[str] = "kron"

    max_size: int = 8192
    """Longest axis that gets a dense factor."""
    max_skew: float = 1.0
    """An axis gets a dense factor only if its squared size is at most this times the elements;
    inf sets no limit."""
    block_size: int = 0
    """Longest axis of the pieces that parameters are cut into, each with a preconditioner of its
    own; 0 leaves them whole."""
    geometry: GeometryName = "Q0.5EQ1.5"
    """How a fit moves a factor; QUAD is cheaper where both sides are dense."""
    triangular: bool = False
    """Whether dense factors are triangles; takes geometry EQ."""
    dtype: DTypeName = "auto"
    """Type of the factors; auto is the parameters', at least single precision."""

    def build(self) -> Preconditioner | Scope:
        """Return the form."""
        geometry, dtype = _GEOMETRIES[self.geometry], _DTYPES[self.dtype]
        if self.triangular:
            plan = SizePlan(max_size=self.max_size, max_skew=self.max_skew, dense=TRIANGULAR)
            kron = Kron(plan=plan, geometry=geometry, dtype=dtype)
        else:
            kron = Kron(
                max_size=self.max_size, max_skew=self.max_skew, geometry=geometry, dtype=dtype
            )
        return Split(kron, self.block_size) if self.block_size else kron


@dataclass(frozen=True, kw_only=True)
class AffineForm:
    """The factors of a named plan for matrices, and a diagonal for other shapes."""

    name: ClassVar[str] = "affine"

    plan: PlanName = "scan"
    """What outputs and inputs get: scan scales and normalises, scaw scales and whitens."""
    dtype: DTypeName = "auto"
    """Type of the factors; auto is the parameters', at least single precision."""

    def build(self) -> Preconditioner | Scope:
        """Return the scope."""
        dtype = _DTYPES[self.dtype]
        kron = Kron(plan=_PLANS[self.plan], geometry=EQ, dtype=dtype)
        return DirectSum((by_axes(2, 2), kron), otherwise=Diagonal(dtype=dtype))


@dataclass(frozen=True, kw_only=True)
class DenseForm:
    """A full matrix, of the squared number of a parameter's elements."""

    name: ClassVar[str] = "dense"

    joint: bool = False
    """Whether all parameters are one vector, or each is one."""
    geometry: GeometryName = "QUAD"
    """How a fit moves the matrix; a triangle takes EQ."""
    triangular: bool = False
    """Whether it is a triangle, its steps divided by their largest entry."""
    dtype: DTypeName = "auto"
    """Type of the matrix; auto is the parameters', at least single precision."""

    def build(self) -> Preconditioner | Scope:
        """Return the form or its scope."""
        geometry, dtype = _GEOMETRIES[self.geometry], _DTYPES[self.dtype]
        if self.triangular:
            dense = Dense(geometry=geometry, factor=TRIANGULAR, normaliser=MaxEntry(), dtype=dtype)
        else:
            dense = Dense(geometry=geometry, dtype=dtype)
        return _scoped(dense, self.joint)


@dataclass(frozen=True, kw_only=True)
class DiagonalForm:
    """A scale per element."""

    name: ClassVar[str] = "diagonal"

    elementwise: bool = True
    """Whether every element is fitted with a step of its own, or all of a parameter with one."""
    dtype: DTypeName = "auto"
    """Type of the scales; auto is the parameters', at least single precision."""

    def build(self) -> Preconditioner | Scope:
        """Return the form."""
        return Diagonal(elementwise=self.elementwise, dtype=_DTYPES[self.dtype])


@dataclass(frozen=True, kw_only=True)
class ScalarForm:
    """One scale per parameter."""

    name: ClassVar[str] = "scalar"

    def build(self) -> Preconditioner | Scope:
        """Return the form."""
        return Scalar()


@dataclass(frozen=True, kw_only=True)
class ClosedDiagonalForm:
    """A scale per element from averages: RMSProp, or equilibration with Newton."""

    name: ClassVar[str] = "closed-diagonal"

    beta: float = 0.99
    """Decay of the averages of squares, in [0, 1]."""
    eps: float = 1e-18
    """Added to the average of squares."""

    def build(self) -> Preconditioner | Scope:
        """Return the form."""
        return ClosedDiagonal(beta=self.beta, eps=self.eps)


@dataclass(frozen=True, kw_only=True)
class LowRankForm:
    """A scale per element and a few directions."""

    name: ClassVar[str] = "low-rank"

    rank: int = 10
    """Directions."""
    joint: bool = True
    """Whether all parameters are one vector, or each is one."""
    scale_last: bool = False
    """Whether the scales come after the directions."""
    dtype: DTypeName = "auto"
    """Type of the state; auto is the parameters', at least single precision."""

    def build(self) -> Preconditioner | Scope:
        """Return the form or its scope."""
        order = Order.SCALE_LAST if self.scale_last else Order.SCALE_FIRST
        form = LowRank(rank=self.rank, order=order, dtype=_DTYPES[self.dtype])
        return _scoped(form, self.joint)


@dataclass(frozen=True, kw_only=True)
class SparseLUForm:
    """A scale per element, and full rows and columns for the first ones."""

    name: ClassVar[str] = "sparse-lu"

    rank: int = 10
    """Full rows and columns."""
    joint: bool = True
    """Whether all parameters are one vector, or each is one."""
    dtype: DTypeName = "auto"
    """Type of the state; auto is the parameters', at least single precision."""

    def build(self) -> Preconditioner | Scope:
        """Return the form or its scope."""
        return _scoped(SparseLU(rank=self.rank, dtype=_DTYPES[self.dtype]), self.joint)


@dataclass(frozen=True, kw_only=True)
class ArrowForm:
    """A triangle that sees everything for the first elements, a scale for the others."""

    name: ClassVar[str] = "arrow"

    size: int = 10
    """Elements of the triangle."""
    joint: bool = True
    """Whether all parameters are one vector, or each is one."""
    dtype: DTypeName = "auto"
    """Type of the state; auto is the parameters', at least single precision."""

    def build(self) -> Preconditioner | Scope:
        """Return the form or its scope.

        Raises:
            ValueError: If the triangle is empty.
        """
        if self.size < 1:
            raise ValueError(f"arrow got size = {self.size}; give 1 or more.")
        form = BlockTriangular(splits=(self.size,), dtype=_DTYPES[self.dtype])
        return _scoped(form, self.joint)


@dataclass(frozen=True, kw_only=True)
class PermutationForm:
    """A sum of scaled permutations: a scale per element and per partner."""

    name: ClassVar[str] = "permutation"

    group: Literal["xmat", "butterfly", "klein", "cyclic"] = "xmat"
    """Who is whose partner."""
    order: int = 2
    """Shifts of the group cyclic; divides the number of elements."""
    joint: bool = True
    """Whether all parameters are one vector, or each is one."""
    dtype: DTypeName = "auto"
    """Type of the scales; auto is the parameters', at least single precision."""

    def build(self) -> Preconditioner | Scope:
        """Return the form or its scope."""
        groups: dict[str, PermutationGroup] = {
            "xmat": X_MATRIX,
            "butterfly": BUTTERFLY,
            "klein": KLEIN,
        }
        group = groups.get(self.group) or Cyclic(size=self.order)
        return _scoped(Permutation(group=group, dtype=_DTYPES[self.dtype]), self.joint)


@dataclass(frozen=True, kw_only=True)
class TouchedRowsForm:
    """For embeddings: a scale per row and a factor of the columns; takes sparse gradients."""

    name: ClassVar[str] = "touched-rows"

    columns: Literal["general", "triangular", "diagonal"] = "general"
    """Factor of the columns; a triangle takes geometry EQ."""
    geometry: GeometryName = "Q0.5EQ1.5"
    """How a fit moves the factors."""
    exact: bool = False
    """Whether rows without a gradient count as zeros, or take no part."""
    dtype: DTypeName = "auto"
    """Type of the factors; auto is the parameters', at least single precision."""

    def build(self) -> Preconditioner | Scope:
        """Return the scope: rows of matrices, and a diagonal for other shapes."""
        rows = TouchedRows(
            rows=ExactRows() if self.exact else LazyRows(),
            columns=_COLUMNS[self.columns],
            geometry=_GEOMETRIES[self.geometry],
            dtype=_DTYPES[self.dtype],
        )
        return DirectSum((by_axes(2, 2), rows), otherwise=Diagonal(dtype=_DTYPES[self.dtype]))


FormConfig = (
    KronForm
    | AffineForm
    | DenseForm
    | DiagonalForm
    | ScalarForm
    | ClosedDiagonalForm
    | LowRankForm
    | SparseLUForm
    | ArrowForm
    | PermutationForm
    | TouchedRowsForm
)

FORMS: dict[str, FormConfig] = {
    "kron": KronForm(),
    "kron-dense": KronForm(max_skew=math.inf),
    "scan": AffineForm(plan="scan"),
    "scaw": AffineForm(plan="scaw"),
    "affine": AffineForm(),
    "dense": DenseForm(),
    "dense-triangle": DenseForm(geometry="EQ", triangular=True),
    "diagonal": DiagonalForm(),
    "scalar": ScalarForm(),
    "closed-diagonal": ClosedDiagonalForm(),
    "low-rank": LowRankForm(),
    "sparse-lu": SparseLUForm(),
    "arrow": ArrowForm(),
    "permutation": PermutationForm(),
    "xmat": PermutationForm(group="xmat"),
    "butterfly": PermutationForm(group="butterfly"),
    "touched-rows": TouchedRowsForm(),
}
"""Every form by its name; some names are settings of another one."""
