"""Which factor each axis of a parameter gets: a pure function of the shape.

Not cached: it is a loop over a few axes, and the compiler traces through it.
"""

import math

from psgd_optim.factors import DIAGONAL, GENERAL, Factor


def plan_axes(shape: tuple[int, ...], max_size: float, max_skew: float) -> tuple[Factor, ...]:
    """Choose a factor for every axis.

    An axis of size `n` in a tensor of `N` elements gets a diagonal factor when `n <= 1`,
    `n > max_size` or `n^2 > max_skew * N`, and a dense one otherwise.

    Args:
        shape: The parameter's shape.
        max_size: Longest axis with a dense factor.
        max_skew: Largest number of a dense factor's entries per element of the parameter.

    Returns:
        One factor per axis.

    >>> [factor.name for factor in plan_axes((512, 128), 8192, 1.0)]
    ['diagonal', 'dense']

    Source: design formulas 8.0.
    """
    elements = math.prod(shape)
    return tuple(
        DIAGONAL if n <= 1 or n > max_size or n * n > max_skew * elements else GENERAL
        for n in shape
    )
