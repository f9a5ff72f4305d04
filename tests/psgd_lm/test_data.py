import pytest
import torch

from psgd_lm.data import DataConfig, load_data, narrowest_dtype, sample_batch
from psgd_lm.tokenizer import decode
from psgd_optim.types import InputError


def test_split_is_the_first_90_and_the_last_10_percent(text_file):
    text = text_file.read_text()
    data = load_data(DataConfig(path=str(text_file)), 8)
    cut = len(text) * 9 // 10
    assert decode(data.tokenizer, data.train.tolist()) == text[:cut]
    assert decode(data.tokenizer, data.validation.tolist()) == text[cut:]
    assert data.validation_text == text[cut:]


def test_tiny_shakespeare_has_the_customary_split(real_data):
    data = load_data(DataConfig(path=str(real_data("shakespeare/input.txt"))), 256)
    assert (len(data.train), len(data.validation)) == (1_003_854, 111_540)
    assert data.tokenizer.vocab_size == 65


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [(256, torch.uint8), (257, torch.int16), (2**15, torch.int16), (2**15 + 1, torch.int32)],
)
def test_tokens_take_the_narrowest_type(vocab_size, dtype):
    assert narrowest_dtype(vocab_size) == dtype
    assert torch.tensor(vocab_size - 1).to(dtype).item() == vocab_size - 1


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
    batch = sample_batch(data.validation, context=8, batch_size=3, seed=0, step=0)
    assert batch[0].shape == (3, 8)


@pytest.mark.parametrize("fraction", [0.0, 1.0, float("nan")])
def test_fraction_outside_0_and_1_is_refused(fraction):
    with pytest.raises(InputError, match=r"--data\.validation-fraction a number between 0 and 1"):
        DataConfig(validation_fraction=fraction)


def batch(seed, step, tokens=None):
    tokens = torch.arange(1000) if tokens is None else tokens
    return sample_batch(tokens, context=5, batch_size=4, seed=seed, step=step)


def test_targets_are_the_next_tokens():
    inputs, targets = batch(0, 0)
    assert inputs.shape == targets.shape == (4, 5)
    assert torch.equal(targets, inputs + 1)


def test_batch_depends_on_seed_and_step_alone():
    torch.manual_seed(1)
    before, state = batch(3, 7), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(before[0], batch(3, 7)[0])
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_neighbouring_seeds_and_steps_have_other_batches():
    drawn = {tuple(batch(seed, step)[0][:, 0].tolist()) for seed in range(5) for step in range(5)}
    assert len(drawn) == 25


def test_every_window_can_be_drawn():
    tokens = torch.arange(8)  # three windows of 5 + 1
    starts = {int(s) for step in range(40) for s in batch(0, step, tokens)[0][:, 0]}
    assert starts == {0, 1, 2}
