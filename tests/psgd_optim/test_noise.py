import itertools

import pytest
import torch

from psgd_optim.noise import coin, noise_generator, normal_like

CPU = torch.device("cpu")


def test_noise_depends_on_seed_step_and_block_alone() -> None:
    def draw(*key: int) -> float:
        return float(torch.rand((), generator=noise_generator(CPU, *key)))

    assert draw(1, 2, 3) == draw(1, 2, 3)
    keys = itertools.product(range(3), range(4), range(-4, 4))
    values = [draw(*key) for key in keys if key[2] != -1]  # -1 is the coin's
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_normal_numbers_have_unit_variance_in_the_dtype_asked_for(dtype: torch.dtype) -> None:
    x = normal_like(torch.empty(20_000, dtype=dtype), noise_generator(CPU, 0, 0, 0))
    assert x.dtype == dtype
    size = x.to(torch.promote_types(dtype, torch.float32)).abs().square().mean()
    assert float(size) == pytest.approx(1.0, abs=0.05)


def test_coins_are_uniform() -> None:
    coins = torch.tensor([coin(3, step) for step in range(20_000)], dtype=torch.float64)
    counts = torch.histc(coins, 10, 0, 1)
    assert float((counts / 2000 - 1).abs().max()) < 0.08  # 3.5 standard deviations of 2.1 %
