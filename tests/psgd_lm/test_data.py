import pytest

from psgd_lm.batches import Windows
from psgd_lm.data import DataConfig, load_data
from psgd_lm.tokenizer import decode
from psgd_optim.types import InputError


def test_split_is_the_first_90_and_the_last_10_percent(text_file):
    text = text_file.read_text()
    data = load_data(DataConfig(path=str(text_file)), 8)
    cut = len(text) * 9 // 10
    for part, expected in ((data.train, text[:cut]), (data.validation, text[cut:])):
        assert decode(data.tokenizer, part.span(0, len(part)).tolist()) == expected


def test_tiny_shakespeare_has_the_customary_split(real_data):
    data = load_data(DataConfig(path=str(real_data("shakespeare/input.txt"))), 256)
    assert (len(data.train), len(data.validation)) == (1_003_854, 111_540)
    assert data.tokenizer.vocab_size == 65


@pytest.mark.parametrize("length", [1, 80])
def test_text_shorter_than_a_context_is_refused(tmp_path, length):
    path = tmp_path / "short.txt"
    path.write_text("a" * length)
    # 80 characters: the 72 to train on are enough, the 8 to validate on are not.
    with pytest.raises(InputError, match=r"has \d+ tokens, a window takes 9; give a longer text"):
        load_data(DataConfig(path=str(path)), 8)


def test_shortest_text_that_fits_is_taken(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("a" * 90)
    data = load_data(DataConfig(path=str(path)), 8)
    batch = Windows(data.validation, context=8, batch_size=3, seed=0).at(0)
    assert batch.inputs.shape == (3, 8)


@pytest.mark.parametrize("fraction", [0.0, 1.0, float("nan")])
def test_fraction_outside_0_and_1_is_refused(fraction):
    with pytest.raises(InputError, match=r"--data\.validation-fraction a number between 0 and 1"):
        DataConfig(validation_fraction=fraction)
