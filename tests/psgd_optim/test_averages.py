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
