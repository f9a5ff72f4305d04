import math

import pytest

from psgd_optim.axis_plan import plan_by_size


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
