"""Updates know their norms, whatever their size, and keep them while they are scaled."""

import pytest
import torch

from psgd_optim.updates import Update


def rows(scale: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return (scale * torch.randn(3, 4, 5, generator=rng, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1.0, 1e25, 1e37])
def test_norms_of_any_size_are_exact(scale: float) -> None:
    x = rows(scale)
    exact = x.double().flatten(1).norm(dim=1)
    update = Update(x)
    # At 1e-38, some of the numbers are subnormal themselves.
    torch.testing.assert_close(update.norms().double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(update.rms().double(), exact / 20**0.5, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_scales_and_limits_keep_the_norms_true(dtype: torch.dtype) -> None:
    update = Update(rows(1.0, dtype))
    update.norms()
    update.scale_(torch.tensor([0.5, 1.0, 2.0]))
    torch.testing.assert_close(update.norms(), update.rows.flatten(1).norm(dim=1))
    update.scale_(torch.tensor(3.0))
    torch.testing.assert_close(update.norms(), update.rows.flatten(1).norm(dim=1))
    update.limit_(0.7)
    assert float(update.rows.abs().max()) <= 0.7 * (1 + 1e-6)
    torch.testing.assert_close(update.norms(), update.rows.flatten(1).norm(dim=1))
