import pytest
import torch

from psgd_optim.step_size import LipschitzEMA


def test_it_rises_at_once_and_falls_slowly() -> None:
    ema = LipschitzEMA(beta=0.9)
    value = ema.grow(torch.zeros(2), torch.tensor([4.0, 1.0]))
    torch.testing.assert_close(value, torch.tensor([4.0, 1.0]))
    value = ema.grow(value, torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(value, torch.tensor([3.7, 3.0]))


def test_it_keeps_its_dtype() -> None:
    assert LipschitzEMA().grow(torch.zeros(1), torch.ones(1).double()).dtype == torch.float32


@pytest.mark.parametrize("beta", [-0.1, 1.0, float("nan")])
def test_beta_outside_its_range_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match=r"give a number in \[0, 1\)"):
        LipschitzEMA(beta=beta)
