from dataclasses import replace
from pathlib import Path

import pytest
import torch

from psgd_lm.candidates import Candidates
from psgd_lm.sample import SampleConfig, read_prompt, sample_run, sample_texts, sample_tokens
from psgd_lm.train import train
from psgd_optim.types import InputError


def write(model, **changes):
    prompt = torch.tensor([1, 2, 3])
    config = replace(SampleConfig(tokens=30), **changes)
    return [int(token) for token in sample_tokens(model, prompt, config, rows=1)]


def test_same_seed_writes_the_same_text(tiny_model):
    assert write(tiny_model) == write(tiny_model)
    assert write(tiny_model) != write(tiny_model, seed=1)


def test_global_generator_is_left_alone(tiny_model):
    state = torch.get_rng_state()
    write(tiny_model)
    assert torch.equal(state, torch.get_rng_state())


def windows_of(tokens, context):
    """Return what each token was predicted from: at most a context, begun again at its half."""
    start, windows = max(0, 3 - context), []
    for end in range(3, len(tokens)):
        if end - start > context:
            start = end - context // 2
        windows.append(tokens[start:end])
    return windows


@pytest.fixture(params=["gpt", "recurrent"])
def model(request):
    return request.getfixturevalue(f"tiny_{'model' if request.param == 'gpt' else 'recurrent'}")


def test_cached_sampling_is_uncached_sampling(model):
    model.double()
    context = 10**9 if model.is_recurrent else 8
    expected = [1, 2, 3]
    while len(expected) < 33:
        with torch.no_grad():
            window = windows_of([*expected, 0], context)[-1]
            expected.append(int(model(torch.tensor([window])).logits[0, -1].argmax()))
    assert write(model, temperature=0.0) == expected[3:]
    assert write(model, top_k=1) == expected[3:]


def test_logits_of_cached_sampling_are_those_of_uncached(model, monkeypatch):
    model.double()
    seen = []
    original = Candidates.probabilities

    def watching(self, logits, before):
        seen.append(logits.clone())
        return original(self, logits, before)

    monkeypatch.setattr(Candidates, "probabilities", watching)
    tokens = [1, 2, 3, *write(model, temperature=1.0)]
    context = 10**9 if model.is_recurrent else 8
    for logits, window in zip(seen, windows_of(tokens, context), strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([window])).logits[:, -1]
        torch.testing.assert_close(logits, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 30])
def test_prompt_of_any_length_is_read(model, length):
    model.double()
    prompt = torch.arange(length) % 11
    (first,) = sample_tokens(model, prompt, SampleConfig(tokens=1, temperature=0.0), rows=1)
    with torch.no_grad():
        window = prompt if model.is_recurrent else prompt[-8:]
        assert int(first) == int(model(window[None]).logits[0, -1].argmax())


def test_texts_do_not_depend_on_how_many_are_written(model):
    model.double()
    prompt, config = torch.tensor([1, 2, 3]), SampleConfig(tokens=20, seed=4)
    together = torch.stack(list(sample_tokens(model, prompt, config, rows=3)), dim=1).tolist()
    alone = [write(model, seed=4 + row, tokens=20) for row in range(3)]
    assert together == alone
    assert together[0] != together[1]


def test_penalty_counts_the_prompt_and_what_was_written(tiny_model):
    fixed = -1 - torch.arange(11) / 100  # lower ids are likelier
    tiny_model.register_forward_hook(
        lambda *call: call[2]._replace(logits=fixed.expand(*call[2].logits.shape))
    )
    changes = {"tokens": 8, "temperature": 0.0}
    assert write(tiny_model, **changes) == [0] * 8
    assert write(tiny_model, repetition_penalty=9.0, **changes) == [0, 4, 5, 6, 7, 8, 9, 10]


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "--samples 1 or more"),
        ({"top_p": 0.0}, "--top-p above 0 and up to 1"),
        ({"top_p": 1.5}, "--top-p above 0 and up to 1"),
        ({"min_p": 2.0}, "--min-p between 0 and 1"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty above 0"),
        ({"stop": ("a", "")}, "empty --stop"),
        ({"seed": 2**63 - 1, "samples": 2}, "--seed less than"),
        ({"prompt": "a", "prompt_file": Path("x")}, "give one of them"),
    ],
)
def test_impossible_setting_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        SampleConfig(**changes)


def test_stop_strings_end_a_text(tiny_config):
    train(tiny_config)
    config = SampleConfig(prompt="the ", tokens=200)
    whole = "".join(sample_run(tiny_config.run_dir, config))
    stop = whole[37:40]
    at = whole.index(stop)
    stopped = replace(config, stop=(stop, "never there"))
    assert "".join(sample_run(tiny_config.run_dir, stopped)) == whole[:at]


def test_several_samples_are_those_of_the_following_seeds(tiny_config):
    train(tiny_config)
    config = SampleConfig(prompt="the ", tokens=40, samples=3)
    texts = sample_texts(tiny_config.run_dir, config)
    assert texts == [
        "".join(sample_run(tiny_config.run_dir, replace(config, samples=1, seed=seed)))
        for seed in range(3)
    ]
    stop = texts[1][20:22]
    stopped = sample_texts(tiny_config.run_dir, replace(config, stop=(stop,)))
    assert stopped == [text.partition(stop)[0] for text in texts]


def test_samples_that_all_stopped_are_not_written_on(tiny_config, monkeypatch):
    train(tiny_config)
    seen = []
    original = Candidates.probabilities
    monkeypatch.setattr(
        Candidates, "probabilities", lambda *args: (seen.append(1), original(*args))[1]
    )
    alphabet = tuple("the quick brown fox jumps over the lazy dog\n")
    config = SampleConfig(tokens=200, samples=2, stop=alphabet)
    assert sample_texts(tiny_config.run_dir, config) == ["", ""]
    assert len(seen) == 16


def test_prompt_comes_from_a_file(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_bytes("zwei Flöhe\n".encode())
    assert read_prompt(SampleConfig(prompt_file=path)) == "zwei Flöhe\n"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="is not UTF-8: byte 0xe9 at offset 3"):
        read_prompt(SampleConfig(prompt_file=path))
    with pytest.raises(InputError, match="; give --prompt-file a text file"):
        read_prompt(SampleConfig(prompt_file=tmp_path))


def test_words_go_on_behind_the_prompt_with_a_blank(tiny_config):
    words = replace(tiny_config, data=replace(tiny_config.data, tokenizer="word"))
    run_dir = train(words).run_dir
    config = SampleConfig(prompt="the", tokens=3, temperature=0.0, samples=2)
    once = "".join(sample_run(run_dir, replace(config, samples=1)))
    assert once[0].isspace()
    assert sample_texts(run_dir, config) == [once, once]
