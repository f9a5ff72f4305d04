import pytest
import torch

from psgd_optim.averages import fold_in


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_average_ramps_up_and_then_decays(dtype: torch.dtype) -> None:
    average = torch.zeros(1, 2, dtype=dtype)
    seen, expected, mean = [], [], 0.0
    for t in range(30):
        steps = torch.tensor([float(t)])
        fold_in(average, torch.full((1, 2), float(t), dtype=dtype), steps, None, 0.9)
        seen.append(float(average[0, 0].real))
        decay = min(t / (t + 1), 0.9)
        mean = decay * mean + (1 - decay) * t
        expected.append(mean)
    assert seen[:3] == pytest.approx([0.0, 0.5, 1.0])  # the plain mean while t / (t + 1) < 0.9
    assert seen == pytest.approx(expected, rel=1e-6)  # the weights are in single precision


def test_rows_that_take_no_part_keep_their_average_bit_for_bit() -> None:
    average = torch.tensor([[0.1], [0.2], [0.3]])
    active, steps = torch.tensor([True, False, True]), torch.tensor([0.0, 7.0, 1.0])
    found = fold_in(average, torch.ones(3, 1), steps, active, 0.9)
    assert found is average
    torch.testing.assert_close(average[:, 0], torch.tensor([1.0, 0.2, 0.65]))
    assert float(average[1]) == float(torch.tensor(0.2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("decay", [0.3, 0.9, 0.95, 0.99, 0.999])
def test_past_the_ramp_the_short_way_has_the_same_bits(dtype: torch.dtype, decay: float) -> None:
    """A resumed run counts anew on the host, and must not differ by it."""
    rng = torch.Generator().manual_seed(0)
    x, long = (torch.randn(2, 33, generator=rng, dtype=dtype) for _ in range(2))
    short = long.clone()
    steps = torch.tensor([1 / (1 - decay) + 2, 1e5])
    fold_in(long, x, steps, None, decay)
    fold_in(short, x, None, None, decay)
    assert torch.equal(long, short)
