import pytest
import torch

from psgd_optim.factors.base import Factor
from psgd_optim.factors.diagonal import DIAGONAL
from psgd_optim.factors.matrix import GENERAL

FACTORS = [GENERAL, DIAGONAL]


def moved(factor: Factor, n: int) -> torch.Tensor:
    q = factor.init(n, torch.tensor([1.0, 2.0], dtype=torch.float64))
    rng = torch.Generator().manual_seed(0)
    return q + 0.1 * torch.rand(q.shape, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("shape", [(3, 40), (40, 3), (3, 2)])
def test_precondition_is_the_product_with_p(factor: Factor, shape: tuple[int, int]) -> None:
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for axis, n in enumerate(shape):
        q = moved(factor, n)
        m = factor.matrix(q)
        subscripts = "bij,bjk->bik" if axis == 0 else "bij,bkj->bki"
        expected = torch.einsum(subscripts, m.mH @ m, x)
        torch.testing.assert_close(factor.precondition(q, x, axis), expected)


@pytest.mark.parametrize("factor", FACTORS)
def test_a_number_stands_for_a_multiple_of_the_identity(factor: Factor) -> None:
    x = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    t1 = factor.gram(x, 0)
    start = factor.start(moved(factor, 4), 32, torch.Generator().manual_seed(3))
    identity = factor.init(4, torch.full((2,), 1.5, dtype=torch.float64))
    torch.testing.assert_close(factor.difference(t1, 1.5), factor.difference(t1, identity))
    by_number = factor.curvature(t1, 1.5, start)
    torch.testing.assert_close(by_number, factor.curvature(t1, identity, start), rtol=0.05, atol=0)


def test_a_dense_factor_without_random_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="random rows that draw"):
        GENERAL.curvature(torch.eye(3)[None], 1.0, None)


@pytest.mark.parametrize("factor", FACTORS)
def test_numel_is_the_size_of_a_row(factor: Factor) -> None:
    assert factor.numel(5) == factor.init(5, torch.ones(1))[0].numel()
