import pytest
import torch
from torch import Tensor

from psgd_optim.group_gradient import VectorGradient
from psgd_optim.step_size import FrobeniusNorm, LipschitzEMA, MaxEntry, Normaliser, SpectralNorm


def gradient(sizes: Tensor, *, opposite: bool = False) -> VectorGradient:
    """Return a gradient of two rows whose curvature is of these sizes."""
    t1 = torch.stack([sizes, 0 * sizes, 0.5 * sizes], dim=1)
    return VectorGradient(0 * t1, t1) if opposite else VectorGradient(t1, 0 * t1)


def test_the_bound_rises_at_once_and_falls_slowly() -> None:
    ema = LipschitzEMA(beta=0.9)
    value = ema.grow(torch.zeros(2), gradient(torch.tensor([4.0, 1.0])))
    torch.testing.assert_close(value, torch.tensor([4.0, 1.0]))
    value = ema.grow(value, gradient(torch.tensor([1.0, 3.0])))
    torch.testing.assert_close(value, torch.tensor([3.7, 3.0]))


@pytest.mark.parametrize(
    ("normaliser", "factor"),
    [(MaxEntry(), 1.0), (SpectralNorm(), 1.0), (FrobeniusNorm(), 1.25**0.5)],
)
def test_first_order_normalisers_forget_the_last_step(
    normaliser: Normaliser, factor: float
) -> None:
    for held in (torch.zeros(2), torch.full((2,), 100.0)):
        for opposite in (False, True):
            value = normaliser.grow(held, gradient(torch.tensor([4.0, 1.0]), opposite=opposite))
            torch.testing.assert_close(value, factor * torch.tensor([4.0, 1.0]))


@pytest.mark.parametrize(
    "normaliser", [MaxEntry(), SpectralNorm(), FrobeniusNorm(), LipschitzEMA()]
)
def test_the_divisor_keeps_its_dtype_and_is_above_zero(normaliser: Normaliser) -> None:
    value = normaliser.grow(torch.zeros(1), gradient(torch.zeros(1, dtype=torch.float64)))
    assert value.dtype == torch.float32
    assert float(value) > 0


def test_a_sample_too_large_gives_a_divisor_that_is_not_finite() -> None:
    for size in (float("inf"), float("nan")):
        value = LipschitzEMA().grow(torch.ones(1), gradient(torch.tensor([size])))
        assert not bool(value.isfinite())


@pytest.mark.parametrize("beta", [-0.1, 1.0, float("nan")])
def test_beta_outside_its_range_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match=r"give a number in \[0, 1\)"):
        LipschitzEMA(beta=beta)
