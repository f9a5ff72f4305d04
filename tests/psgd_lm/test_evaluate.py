import json
import math
import zlib
from dataclasses import replace

import pytest
import torch

import psgd_lm.evaluate as evaluate_module
from psgd_lm.data import zlib_bits_per_byte
from psgd_lm.evaluate import evaluate, evaluate_run
from psgd_lm.tokens import InMemory
from psgd_lm.train import train

LENGTHS = torch.tensor([1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3])  # of the 11 tokens of the tiny model


def tokens(count=203):
    return torch.randint(11, (count,), generator=torch.Generator().manual_seed(5)).to(torch.uint8)


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
        evaluate(tiny_model, text, LENGTHS, batch_tokens=size).loss for size in (1, 8, 24, 4096)
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
    tiny_model.dropout.p = 0.5
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


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_stored_run_evaluates_to_exactly_what_training_logged(tiny_config, tokenizer):
    config = replace(tiny_config, data=replace(tiny_config.data, tokenizer=tokenizer))
    summary = train(config).summary
    figures = evaluate_run(config.run_dir)
    assert figures["loss"] == summary["val_loss"]
    assert figures["bits_per_byte"] == summary["bits_per_byte"]
    assert figures["zlib_bits_per_byte"] == summary["zlib_bits_per_byte"]
    assert figures["step"] == 20
    best = evaluate_run(config.run_dir, best=True)
    assert (best["loss"], best["step"]) == (summary["best_val_loss"], summary["best_step"])


def test_validation_text_is_what_is_evaluated(tiny_config, text_file):
    # The last tenth is of other letters: a model of the first nine tenths does badly on it.
    text_file.write_text("ab" * 900 + "cd" * 100)
    summary = train(replace(tiny_config, steps=60, eval_every=60)).summary
    lines = (tiny_config.run_dir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    last_train_loss = [r["train/loss"] for r in records if "train/loss" in r][-1]
    assert summary["val_loss"] > last_train_loss + 0.3


def test_a_run_is_evaluated_with_its_number_of_threads(tiny_config, monkeypatch):
    train(tiny_config)
    seen = []

    def counting(*args):
        seen.append(torch.get_num_threads())
        return evaluate(*args)

    monkeypatch.setattr(evaluate_module, "evaluate", counting)
    torch.set_num_threads(2)
    evaluate_run(tiny_config.run_dir)
    assert seen == [1]
    assert torch.get_num_threads() == 2
