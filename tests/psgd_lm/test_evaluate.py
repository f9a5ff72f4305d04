import math
import zlib

import pytest
import torch

from psgd_lm.data import zlib_bits_per_byte
from psgd_lm.evaluate import Reading, evaluate, losses_in_chunks
from psgd_lm.tokens import InMemory
from psgd_optim.types import InputError

LENGTHS = torch.tensor([1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3])  # of the 11 tokens of the tiny model


def tokens(count=203):
    return torch.randint(11, (count,), generator=torch.Generator().manual_seed(5)).to(torch.uint8)


def losses_of_windows(model, text, window_of):
    """Score every token on its own, given the tokens that `window_of` says are before it."""
    losses = []
    for at in range(1, len(text)):
        with torch.no_grad():
            logits = model(text[None, window_of(at) : at].long()).logits[0, -1].double()
        losses.append(-logits.log_softmax(-1)[text[at].long()])
    return torch.stack(losses)


def losses_by_hand(model, text):
    """Sum the losses window by window, in the simplest way."""
    losses = []
    for start in range(0, len(text) - 1, 8):
        window = text[start : start + 9].long()
        with torch.no_grad():
            logits = model(window[None, :-1]).logits[0].double()
        losses += [
            -row.log_softmax(-1)[t].item() for row, t in zip(logits, window[1:], strict=True)
        ]
    return torch.tensor(losses, dtype=torch.float64)


def test_every_token_but_the_first_counts_once(tiny_model):
    text = tokens()
    losses = losses_by_hand(tiny_model, text)
    assert len(losses) == 202
    result = evaluate(tiny_model, InMemory(text), LENGTHS)
    assert result.tokens == 202
    assert result.loss == pytest.approx(losses.mean().item(), rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(losses.mean().item()), rel=1e-6)
    size = int(LENGTHS[text[1:].long()].sum())
    assert result.bits_per_byte == pytest.approx(losses.sum().item() / math.log(2) / size, rel=1e-6)
    expected = losses.std(correction=0).item() / 202**0.5
    assert result.standard_error == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("count", [2, 8, 9, 10, 17, 203])
def test_result_does_not_depend_on_the_batch_size(tiny_model, count):
    text = InMemory(tokens(count))
    results = [
        evaluate(tiny_model, text, LENGTHS, Reading(batch_tokens=size)).loss
        for size in (1, 8, 24, 4096)
    ]
    assert results == pytest.approx([results[0]] * 4, rel=1e-6)


def test_evaluation_leaves_the_model_as_it_was(tiny_model):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    state = torch.get_rng_state()
    tiny_model.train()
    evaluate(tiny_model, InMemory(tokens()), LENGTHS)
    assert tiny_model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], v) for name, v in tiny_model.state_dict().items())


def test_dropout_is_off_in_evaluation(tiny_model):
    expected = evaluate(tiny_model, InMemory(tokens()), LENGTHS)
    tiny_model.dropout = 0.5
    tiny_model.train()
    assert evaluate(tiny_model, InMemory(tokens()), LENGTHS) == expected


def test_huge_loss_has_a_finite_perplexity(tiny_model):
    with torch.no_grad():
        tiny_model.token_embedding.weight.mul_(1e5)
    result = evaluate(tiny_model, InMemory(tokens()), LENGTHS)
    assert result.loss > 1000
    assert math.isfinite(result.perplexity)


def test_zlib_floor_is_of_the_bytes():
    text = "ø" * 50
    assert zlib_bits_per_byte(text) == 8 * len(zlib.compress(text.encode(), 9)) / 100


@pytest.mark.parametrize(("count", "stride"), [(203, 1), (203, 3), (50, 5), (9, 4), (6, 4)])
def test_strided_windows_give_every_token_what_is_before_it(tiny_model, count, stride):
    text = tokens(count)

    def window_of(at):  # the first window is a whole context, the last one ends with the text
        start = 0
        while at > start + 8:
            start = min(start + stride, count - 1 - 8)
        return start

    expected = losses_of_windows(tiny_model, text, window_of)
    result = evaluate(tiny_model, InMemory(text), LENGTHS, Reading(stride=stride, batch_tokens=24))
    assert result.tokens == count - 1
    assert result.loss == pytest.approx(expected.mean().item(), rel=1e-6)


@pytest.mark.parametrize(("count", "streams"), [(203, 1), (203, 10), (14, 5), (4, 10), (2, 10)])
@pytest.mark.parametrize("batch_tokens", [1, 30, 4096])
def test_recurrent_model_carries_its_memory_through_every_stream(
    tiny_recurrent, count, streams, batch_tokens
):
    text = tokens(count)
    total, start = 0.0, 0
    rows = min(streams, count - 1)
    for row in range(rows):
        size = (count - 1) // rows + (row >= rows - (count - 1) % rows)
        part = text[start : start + size + 1].long()
        with torch.no_grad():
            logits = tiny_recurrent(part[None, :-1]).logits[0].double()
        total -= logits.log_softmax(-1).gather(1, part[1:, None]).sum().item()
        start += size
    assert start == count - 1
    reading = Reading(streams=streams, batch_tokens=batch_tokens)
    result = evaluate(tiny_recurrent, InMemory(text), LENGTHS, reading)
    assert result.tokens == count - 1
    assert result.loss == pytest.approx(total / (count - 1), rel=1e-6)


def test_block_standard_error_is_that_of_the_means_of_blocks(tiny_model):
    text = tokens(150)  # 149 losses: 12 blocks of 12, and 5 left over
    losses = losses_by_hand(tiny_model, text)
    expected = losses[:144].view(12, 12).mean(1).std().item() / 12**0.5
    result = evaluate(tiny_model, InMemory(text), LENGTHS)
    assert result.block_standard_error == pytest.approx(expected, rel=1e-5)


def test_neighbours_that_go_together_show_in_the_block_standard_error_only(tiny_model):
    # Stretches of 60 equal tokens: their losses hardly vary within a stretch.
    text = tokens(60).repeat_interleave(60)
    result = evaluate(tiny_model, InMemory(text), LENGTHS)
    assert result.block_standard_error > 3 * result.standard_error


def test_losses_in_chunks_are_the_losses(monkeypatch):
    monkeypatch.setattr("psgd_lm.evaluate.LOSS_LOGITS", 40)
    logits = torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(1))
    targets = tokens(15).long().view(3, 5)
    expected = -logits.double().log_softmax(-1).gather(2, targets[..., None])[..., 0]
    torch.testing.assert_close(
        losses_in_chunks(logits, targets).double(), expected, atol=1e-6, rtol=1e-6
    )
    # A loss in bfloat16 would move in steps of 1/64.
    half = losses_in_chunks(logits.bfloat16(), targets)
    assert half.dtype == torch.float32
    exact = -logits.bfloat16().double().log_softmax(-1).gather(2, targets[..., None])[..., 0]
    torch.testing.assert_close(half.double(), exact, atol=1e-6, rtol=1e-6)


def test_a_large_vocabulary_goes_through_in_small_pieces(tiny_model, monkeypatch):
    seen = []
    tiny_model.register_forward_hook(lambda *call: seen.append(call[2].logits.numel()))
    monkeypatch.setattr("psgd_lm.evaluate.MOST_LOGITS", 2 * 8 * 11)
    evaluate(tiny_model, InMemory(tokens()), LENGTHS)
    assert max(seen) == 2 * 8 * 11


def test_autocast_moves_the_loss_a_little(tiny_model):
    exact = evaluate(tiny_model, InMemory(tokens()), LENGTHS).loss
    half = evaluate(tiny_model, InMemory(tokens()), LENGTHS, Reading(autocast=torch.bfloat16)).loss
    assert half != exact
    # bfloat16 has 8 bits: a product is wrong by up to 2^-8 of itself, and errors average out.
    assert half == pytest.approx(exact, rel=2**-8)


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        ({"stride": 8}, "stride 8 with a context of 8; give --stride less than"),
        ({"stride": -1}, "stride -1; give --stride 0 or more"),
        ({"streams": 0}, "streams 0; give --streams 1 or more"),
        ({"batch_tokens": 0}, "--batch-tokens 1 or more"),
    ],
)
def test_impossible_reading_is_refused(tiny_model, reading, message):
    with pytest.raises(InputError, match=message):
        evaluate(tiny_model, InMemory(tokens()), LENGTHS, Reading(**reading))


def test_strides_are_no_matter_of_recurrent_models(tiny_recurrent):
    with pytest.raises(InputError, match="leave --stride away"):
        evaluate(tiny_recurrent, InMemory(tokens()), LENGTHS, Reading(stride=2))
