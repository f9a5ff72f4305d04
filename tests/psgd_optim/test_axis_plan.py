import math

import pytest

from psgd_optim.axis_plan import (
    KRONECKER,
    SCALING_AND_SCALING,
    SCAN,
    SCAW,
    WHITENING_AND_SCALING,
    AxisPlan,
    SizePlan,
    plan_by_size,
)
from psgd_optim.factors.matrix import TRIANGULAR


@pytest.mark.parametrize(
    ("shape", "max_size", "max_skew", "kinds"),
    [
        ((128, 128), 8192, 1.0, "dense dense"),
        ((512, 128), 8192, 1.0, "diagonal dense"),
        ((512, 128), 8192, 4.0, "dense dense"),
        ((512, 128), 127, math.inf, "diagonal diagonal"),
        ((512, 128), 512, math.inf, "dense dense"),
        ((7,), 8192, 1.0, "diagonal"),
        ((7,), 8192, math.inf, "dense"),
        ((1,), math.inf, math.inf, "diagonal"),
        ((1, 6), 8192, math.inf, "diagonal dense"),
        ((64, 32, 3, 3), 8192, 1.0, "dense dense dense dense"),
    ],
)
def test_plan(shape: tuple[int, ...], max_size: float, max_skew: float, kinds: str) -> None:
    assert " ".join(f.name for f in plan_by_size(shape, max_size, max_skew)) == kinds
    plan = SizePlan(max_size=max_size, max_skew=max_skew)
    assert plan.factors(shape) == plan_by_size(shape, max_size, max_skew)


def test_a_size_plan_takes_triangles() -> None:
    plan = SizePlan(dense=TRIANGULAR)
    assert [factor.name for factor in plan.factors((5, 4))] == ["diagonal", "triangular"]
    assert [factor.name for factor in plan.kinds] == ["triangular", "diagonal"]


@pytest.mark.parametrize("field", ["max_size", "max_skew"])
def test_negative_limits_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} = -1"):
        SizePlan(**{field: -1})


@pytest.mark.parametrize(
    ("plan", "kinds"),
    [
        (SCAN, "diagonal normalisation"),
        (SCAW, "diagonal triangular"),
        (WHITENING_AND_SCALING, "triangular diagonal"),
        (SCALING_AND_SCALING, "diagonal diagonal"),
        (KRONECKER, "triangular triangular"),
    ],
)
def test_named_plans(plan: AxisPlan, kinds: str) -> None:
    assert " ".join(factor.name for factor in plan.factors((5, 4))) == kinds
    with pytest.raises(ValueError, match=r"shape \(5,\); give it parameters with 2 axes"):
        plan.factors((5,))


def test_an_empty_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="one per axis"):
        AxisPlan(())
