"""The numbers of a step that is run as one graph."""

import pytest
import torch
from torch import Tensor

from psgd_optim.whole_step import number_tensor


def test_all_numbers_that_are_on_the_device_are_read_there(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = lambda x: isinstance(x, Tensor)  # noqa: E731
    monkeypatch.setattr("psgd_optim.whole_step._is_elsewhere", elsewhere)
    rates = [(torch.tensor(0.5), 0.25, torch.tensor([2.0]), torch.tensor(0.125)), (0.5, 1, 2, 3)]
    found = number_tensor(rates, torch.device("cpu"))
    assert found.tolist() == [[0.5, 0.25, 2.0, 0.125], [0.5, 1.0, 2.0, 3.0]]
