"""What rows without a gradient mean to the fit of an embedding.

Shape legend: a parameter is (I, D), `I` tokens by `D` dimensions; a step sees `t` of the rows.
"""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from psgd_optim.factors.base import Factor
from psgd_optim.factors.diagonal import DIAGONAL
from psgd_optim.frames import Terms, precondition
from psgd_optim.geometry import Frame, Geometry
from psgd_optim.linalg import abs_square, per_block


class RowFit(abc.ABC):
    """What rows without a gradient mean to the fit; concrete ones are final frozen dataclasses."""

    @abc.abstractmethod
    def moving(self, q: Tensor, index: Tensor) -> Tensor:
        """Return the part of the row factor (B, I) that moves when the rows `index` have one."""

    @abc.abstractmethod
    def terms(
        self,
        geometry: Geometry,
        columns: Factor,
        qs: Sequence[Tensor],
        index: Tensor,
        seen: Sequence[Terms],
    ) -> list[Terms]:
        """Return the curvature terms of both axes.

        Args:
            geometry: Says where they are taken.
            columns: The factor of the columns.
            qs: The factors that move: rows, (B, `moving`), and columns.
            index: (t,), the rows with a gradient.
            seen: The terms of these rows alone.
        """

    @abc.abstractmethod
    def put(self, q: Tensor, index: Tensor, new: Tensor) -> None:
        """Write what `moving` returned and has moved into the row factor `q` (B, I)."""


@final
@dataclass(frozen=True)
class LazyRows(RowFit):
    """Rows without a gradient take no part: `P` is fitted to what rows are when they have one.

    An update costs O(t D^2). `P` of a row is smaller than with `ExactRows`, by about the root of
    the row's chance to have a gradient.

    Source: algorithms 4.9 (ii).
    """

    def moving(self, q: Tensor, index: Tensor) -> Tensor:
        """Return the rows with a gradient, (B, t)."""
        return q[:, index]

    def terms(
        self,
        geometry: Geometry,
        columns: Factor,
        qs: Sequence[Tensor],
        index: Tensor,
        seen: Sequence[Terms],
    ) -> list[Terms]:
        """Return the terms of the rows with a gradient."""
        return list(seen)

    def put(self, q: Tensor, index: Tensor, new: Tensor) -> None:
        """Write these rows."""
        q.index_copy_(1, index, new.to(q.dtype))


@final
@dataclass(frozen=True)
class ExactRows(RowFit):
    """Rows without a gradient count as zeros: `P` is the true minimiser over mini-batches.

    Their terms are replaced by expectations over `v`, and over the damping noise that a dense
    sample would have there. The factor of such a row grows in every update, until its `P` is
    about the inverse root of its chance to have a gradient, at most `I / damping`. An update costs
    O(t D^2) and O(I) numbers.

    A row that is far rarer than `1 / precond_lr` updates is fitted to nothing but zeros for long,
    and its next step is large: keep a clip, or take `LazyRows`.

    Args:
        damping: The noise of rows without a gradient, in gradient units; the criterion's own.

    Raises:
        ValueError: If the damping is negative or not finite.

    Source: algorithms 4.9 (i). Deviation: the damping noise, which a dense sample has, too.
    """

    damping: float = 1e-9

    def __post_init__(self) -> None:
        if not 0 <= self.damping < math.inf:
            raise ValueError(
                f"ExactRows got damping = {self.damping}; give a finite number of at least 0."
            )

    def moving(self, q: Tensor, index: Tensor) -> Tensor:
        """Return all rows, (B, I)."""
        return q

    def terms(
        self,
        geometry: Geometry,
        columns: Factor,
        qs: Sequence[Tensor],
        index: Tensor,
        seen: Sequence[Terms],
    ) -> list[Terms]:
        """Return the terms of all rows: the expectation where there is no gradient."""
        n = qs[1].shape[-1]
        eye = torch.eye(n, dtype=qs[1].dtype, device=index.device).expand(len(qs[1]), n, n)
        # A row of noise has the image x_j X z: E |image|^2 and E image image^H follow from x and X.
        x, y = _noise_images(geometry, DIAGONAL, qs[0], torch.ones_like(qs[0]))
        x_columns, y_columns = _noise_images(geometry, columns, qs[1], eye)
        (t1_rows, t2_rows), (t1_columns, t2_columns) = seen
        rows, gram = _completed(columns, t1_rows, t1_columns, x, self.damping * x_columns, index)
        if not (isinstance(t2_rows, Tensor) and isinstance(t2_columns, Tensor)):
            return [(rows, t2_rows), (gram, float(x.shape[1]))]  # an expectation everywhere
        t2 = _completed(columns, t2_rows, t2_columns, y, y_columns, index)
        return [(rows, t2[0]), (gram, t2[1])]

    def put(self, q: Tensor, index: Tensor, new: Tensor) -> None:
        """Write all rows."""
        q.copy_(new)


def _noise_images(
    geometry: Geometry, factor: Factor, q: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what the two terms of a sample are made of, for `h` and `v` equal to `x`."""
    if geometry.frame is Frame.LEFT:
        return factor.multiply(q, x, 0), factor.solve_adjoint(q, x, 0)
    return precondition(geometry, (factor,), (q,), x), x


def _completed(
    columns: Factor,
    rows_term: Tensor,
    columns_term: Tensor,
    scale: Tensor,
    image: Tensor,
    index: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the terms of both axes with the expectation of the rows that are not in `index`.

    Args:
        columns: The factor of the columns.
        rows_term: (B, t), of the rows in `index`.
        columns_term: As the columns' factor has it.
        scale: (B, I), the size of the image of noise in each row.
        image: (B, D, D), the columns' part of it.
        index: (t,).
    """
    weights = abs_square(scale).index_fill(1, index, 0)
    rows = weights * abs_square(image).sum(dim=(1, 2)).unsqueeze(1)
    gram = columns.gram(image, 0)
    total = per_block(weights.sum(dim=1), gram) * gram
    return rows.index_copy(1, index, rows_term), columns_term + total
