import pytest
import torch

from psgd_lm.tokens import InMemory, narrowest_dtype


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [(256, torch.uint8), (257, torch.int16), (2**15, torch.int16), (2**15 + 1, torch.int32)],
)
def test_tokens_take_the_narrowest_type(vocab_size, dtype):
    assert narrowest_dtype(vocab_size) == dtype
    assert torch.tensor(vocab_size - 1).to(dtype).item() == vocab_size - 1


def test_windows_are_read_where_they_begin():
    tokens = InMemory(torch.arange(100, dtype=torch.uint8))
    windows = tokens.windows(torch.tensor([3, 97, 0]), 3)
    assert windows.tolist() == [[3, 4, 5], [97, 98, 99], [0, 1, 2]]
    assert windows.dtype == torch.int64
    assert tokens.span(5, 8).tolist() == [5, 6, 7]
    assert tokens.to(torch.device("cpu")).span(0, 100).equal(torch.arange(100))
