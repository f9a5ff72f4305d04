"""Which factor each axis of a parameter gets: a plan is a pure function of the shape.

Not cached: it is a loop over a few axes, and the compiler traces through it.
"""

import abc
import math
from dataclasses import dataclass
from typing import final

from psgd_optim.factors.base import Factor
from psgd_optim.factors.diagonal import DIAGONAL
from psgd_optim.factors.matrix import GENERAL, TRIANGULAR, MatrixFactor
from psgd_optim.factors.normalisation import NORMALISATION


class Plan(abc.ABC):
    """A choice of one factor per axis."""

    @property
    @abc.abstractmethod
    def kinds(self) -> tuple[Factor, ...]:
        """Every factor that the plan may choose."""

    @abc.abstractmethod
    def factors(self, shape: tuple[int, ...]) -> tuple[Factor, ...]:
        """Choose a factor for every axis of a parameter.

        Args:
            shape: The parameter's shape.

        Returns:
            One factor per axis.

        Raises:
            ValueError: If the plan is not for parameters with that many axes.
        """


def plan_by_size(
    shape: tuple[int, ...], max_size: float, max_skew: float, dense: Factor = GENERAL
) -> tuple[Factor, ...]:
    """Choose dense factors where they are affordable, whatever the parameter's order.

    An axis of size `n` in a tensor of `N` elements gets a diagonal factor when `n <= 1`,
    `n > max_size` or `n^2 > max_skew * N`, and a dense one otherwise.

    Args:
        shape: The parameter's shape.
        max_size: Longest axis with a dense factor.
        max_skew: Largest number of a dense factor's entries per element of the parameter.
        dense: The factor of the other axes.

    Returns:
        One factor per axis.

    >>> [factor.name for factor in plan_by_size((512, 128), 8192, 1.0)]
    ['diagonal', 'dense']

    Source: design formulas 8.0.
    """
    elements = math.prod(shape)
    return tuple(
        DIAGONAL if n <= 1 or n > max_size or n * n > max_skew * elements else dense for n in shape
    )


@final
@dataclass(frozen=True, kw_only=True)
class SizePlan(Plan):
    """The choice of `plan_by_size`, as a plan.

    Args:
        max_size: Longest axis with a dense factor.
        max_skew: Largest number of a dense factor's entries per element of the parameter. 1 gives
            the long side of a matrix a diagonal; `math.inf` never does.
        dense: The factor of the other axes, `GENERAL` or `TRIANGULAR`.

    Raises:
        ValueError: If `max_size` or `max_skew` is negative.
    """

    max_size: float = 8192
    max_skew: float = 1.0
    dense: MatrixFactor = GENERAL

    def __post_init__(self) -> None:
        for field in ("max_size", "max_skew"):
            value = getattr(self, field)
            if not value >= 0:
                raise ValueError(f"A plan got {field} = {value}; give a number of at least 0.")

    @property
    def kinds(self) -> tuple[Factor, ...]:
        """The dense factor and the diagonal."""
        return (self.dense, DIAGONAL)

    def factors(self, shape: tuple[int, ...]) -> tuple[Factor, ...]:
        """Choose by size."""
        return plan_by_size(shape, self.max_size, self.max_skew, self.dense)


@final
@dataclass(frozen=True)
class AxisPlan(Plan):
    """One named factor per axis, for parameters of one order.

    For the matrix of an affine map the first axis is the outputs, the second the inputs.

    Args:
        axes: The factors, first axis first.

    Raises:
        ValueError: If there are none.

    Source: algorithms 4.8.
    """

    axes: tuple[Factor, ...]

    def __post_init__(self) -> None:
        if not self.axes:
            raise ValueError("AxisPlan got no factor; give one per axis, such as (DIAGONAL,).")

    @property
    def kinds(self) -> tuple[Factor, ...]:
        """The named factors."""
        return self.axes

    def factors(self, shape: tuple[int, ...]) -> tuple[Factor, ...]:
        """Return the named factors."""
        if len(shape) != len(self.axes):
            names = ", ".join(kind.name for kind in self.axes)
            raise ValueError(
                f"AxisPlan({names}) got a parameter of shape {tuple(shape)}; give it parameters "
                f"with {len(self.axes)} axes above size 1, or choose another plan."
            )
        return self.axes


SCAN = AxisPlan((DIAGONAL, NORMALISATION))
"""Scaling of outputs, normalisation of inputs, whose last one is the constant 1. S1 5.3."""

SCAW = AxisPlan((DIAGONAL, TRIANGULAR))
"""Scaling of outputs, whitening of inputs. S1 5.4."""

WHITENING_AND_SCALING = AxisPlan((TRIANGULAR, DIAGONAL))
"""Whitening of outputs, scaling of inputs: keeps untouched columns untouched. S1 appendix A."""

SCALING_AND_SCALING = AxisPlan((DIAGONAL, DIAGONAL))
"""Scaling of both sides, the cheapest plan."""

KRONECKER = AxisPlan((TRIANGULAR, TRIANGULAR))
"""Whitening of both sides. S1 5.2."""
