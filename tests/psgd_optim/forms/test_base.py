import pytest
import torch

from psgd_optim.forms.base import Preconditioner, state_dtype


@pytest.mark.parametrize(
    ("param", "wanted", "expected"),
    [
        (torch.float32, None, torch.float32),
        (torch.bfloat16, None, torch.float32),
        (torch.float64, None, torch.float64),
        (torch.complex64, None, torch.complex64),
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.complex64, torch.float64, torch.complex128),
    ],
)
def test_state_dtype(param: torch.dtype, wanted: torch.dtype, expected: torch.dtype) -> None:
    assert state_dtype(torch.empty(0, dtype=param), wanted) == expected


def test_the_contract_cannot_be_instantiated() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Preconditioner()
