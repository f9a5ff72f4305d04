from dataclasses import replace

import pytest
import torch

from psgd_lm.sample import SampleConfig, choose, sample_run, sample_tokens
from psgd_lm.train import train
from psgd_optim.types import InputError


def write(model, **changes):
    prompt = torch.tensor([1, 2, 3])
    return list(sample_tokens(model, prompt, replace(SampleConfig(tokens=30), **changes)))


def test_same_seed_writes_the_same_text(tiny_model):
    assert write(tiny_model) == write(tiny_model)
    assert write(tiny_model) != write(tiny_model, seed=1)


def test_global_generator_is_left_alone(tiny_model):
    state = torch.get_rng_state()
    write(tiny_model)
    assert torch.equal(state, torch.get_rng_state())


def test_no_temperature_and_one_candidate_take_the_likeliest(tiny_model):
    expected, tokens = [], [1, 2, 3]
    for _ in range(30):
        with torch.no_grad():
            tokens.append(int(tiny_model(torch.tensor([tokens[-8:]])).logits[0, -1].argmax()))
        expected.append(tokens[-1])
    assert write(tiny_model, temperature=0.0) == expected
    assert write(tiny_model, top_k=1) == expected


def test_choice_follows_the_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([choose(logits, 0.5, 3, generator) for _ in range(4000)])
    expected = torch.tensor([0.0, 2.0, 4.0, 6.0])
    expected[0] = -torch.inf
    frequencies = drawn.bincount(minlength=4) / 4000
    # Three standard deviations of the frequency of a coin at 4000 throws.
    torch.testing.assert_close(frequencies, expected.softmax(0), atol=0.024, rtol=0)
    assert frequencies[0] == 0


def test_tiny_temperature_does_not_overflow():
    logits = torch.tensor([50.0, 49.0])
    assert choose(logits, 1e-30, 0, torch.Generator()).item() == 0


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_run_writes_text(tiny_config, tokenizer):
    train(replace(tiny_config, data=replace(tiny_config.data, tokenizer=tokenizer)))
    text = "".join(sample_run(tiny_config.run_dir, SampleConfig(prompt="the ", tokens=40)))
    assert text == "".join(sample_run(tiny_config.run_dir, SampleConfig(prompt="the ", tokens=40)))
    assert len(text) == 40 if tokenizer == "char" else 0 < len(text) <= 40


def test_empty_prompt_and_no_tokens_are_allowed(tiny_config):
    train(tiny_config)
    assert list(sample_run(tiny_config.run_dir, SampleConfig(tokens=0))) == []
    assert len(list(sample_run(tiny_config.run_dir, SampleConfig(tokens=3)))) == 3


def test_prompt_with_an_unknown_character_is_refused_before_any_text(tiny_config):
    train(tiny_config)
    with pytest.raises(InputError, match="'Ø' at position 1 is not in the model's alphabet"):
        sample_run(tiny_config.run_dir, SampleConfig(prompt="aØ"))


@pytest.mark.parametrize("name", ["tokens", "temperature", "top_k", "seed"])
def test_negative_setting_is_refused(name):
    with pytest.raises(InputError, match=rf"--{name.replace('_', '-')} 0 or more"):
        SampleConfig(**{name: -1})
