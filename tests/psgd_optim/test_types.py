import dataclasses

import pytest
import torch

from psgd_optim.types import InputError, Probe


def test_a_probe_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Probe(h=torch.ones(1)).h = torch.zeros(1)


def test_input_errors_are_value_errors() -> None:
    assert issubclass(InputError, ValueError)
