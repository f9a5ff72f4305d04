"""What all tokenizers have in common."""

import functools
import json
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from psgd_lm.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    WordTokenizer,
    base,
    decode,
    encode_pieces,
    tokenizer_from_dict,
    tokenizer_sha256,
)
from psgd_optim.types import InputError

UNICODE = st.text(st.characters(exclude_categories=("Cs",)))
# What cuts between pieces depend on: blanks of all kinds, endings, digits, scripts, documents.
SNAGS = [
    "a",
    "It's",
    "'ll",
    "é",
    "7",
    "12 ",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "\u3000",
    "\x1c",
]
SNAGS += ["!", "...", "日本、", "<|endoftext|>", "<|endof", "text|>", "_", "\u0301", "😀", "\xa0 "]
SNAGGY = st.lists(st.sampled_from(SNAGS), max_size=60).map("".join)
ENGLISH = "the cat's 12 hats, the cat sat; that's that. " * 20


@functools.cache
def tokenizers() -> dict[str, Tokenizer]:
    alphabet = CharTokenizer("".join(dict.fromkeys("".join(SNAGS))))
    return {
        "char": alphabet,
        "byte": ByteTokenizer(),
        "word": WordTokenizer.of_pieces(SNAGS),
        "bpe": BPETokenizer.of_pieces([ENGLISH, *SNAGS * 3], 400),
        "bpe with a separator": BPETokenizer.of_pieces([ENGLISH], 400, "<|endoftext|>"),
        "bpe with a blank separator": BPETokenizer.of_pieces([ENGLISH], 400, "\n\n"),
        "bpe with a separator that overlaps itself": BPETokenizer.of_pieces([ENGLISH], 400, ". ."),
    }


NAMES = ["char", "byte", "word", "bpe", "bpe with a separator", "bpe with a blank separator"]
NAMES += ["bpe with a separator that overlaps itself"]


@pytest.mark.parametrize("name", [n for n in NAMES if n not in {"char", "word"}])
@given(text=st.one_of(UNICODE, SNAGGY))
def test_any_unicode_text_comes_back(name, text):
    tokenizer = tokenizers()[name]
    tokens = tokenizer.encode(text)
    assert tokens.dtype == torch.int64
    assert decode(tokenizer, tokens.tolist()) == text
    lengths = tokenizer.byte_lengths()
    assert lengths.shape == (tokenizer.vocab_size,)
    assert int(lengths[tokens].sum()) == len(text.encode())


@pytest.mark.parametrize("name", NAMES)
@given(text=SNAGGY, seed=st.integers(0, 2**20))
def test_a_text_in_pieces_has_the_tokens_of_the_whole(name, text, seed):
    tokenizer = tokenizers()[name]
    rng = random.Random(seed)
    pieces, rest = [], text
    while rest:
        size = rng.randint(1, 12)
        pieces.append(rest[:size])
        rest = rest[size:]
    for threads in (1, 3):
        runs = list(encode_pieces(tokenizer, pieces, threads))
        assert [token for run in runs for token in run.tolist()] == tokenizer.encode(text).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_long_texts_are_cut_near_their_end(name):
    text = ENGLISH * 100
    cut = tokenizers()[name].last_cut(text)
    assert len(text) - 20 < cut <= len(text)


@pytest.mark.parametrize("name", ["bpe", "bpe with a separator"])
def test_script_without_blanks_is_cut_at_its_signs(name):
    tokenizer = tokenizers()[name]
    text = "日本語、日本語。" * 100
    cut = tokenizer.last_cut(text)
    assert len(text) - 30 < cut < len(text)
    both = tokenizer.encode(text[:cut]).tolist() + tokenizer.encode(text[cut:]).tolist()
    assert both == tokenizer.encode(text).tolist()


def test_text_without_a_place_to_cut_is_refused(monkeypatch):
    monkeypatch.setattr(base, "LONGEST_PIECE", 1000)
    with pytest.raises(InputError, match=r"has 1,100 characters without a blank.*char or byte"):
        list(encode_pieces(tokenizers()["word"], ["x" * 100] * 20))


@pytest.mark.parametrize("name", NAMES)
def test_lone_surrogate_is_refused(name):
    with pytest.raises(InputError, match=r"'\\ud800'.* at position 1") as error:
        tokenizers()[name].encode("a\ud800")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_json_rebuilds_the_tokenizer(name):
    tokenizer = tokenizers()[name]
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert type(again) is type(tokenizer)
    assert tokenizer_sha256(again) == tokenizer_sha256(tokenizer)
    assert again.start_token == tokenizer.start_token
    text = "".join(SNAGS)
    assert again.encode(text).tolist() == tokenizer.encode(text).tolist()


def test_every_tokenizer_has_a_hash_of_its_own():
    hashes = {tokenizer_sha256(tokenizer) for tokenizer in tokenizers().values()}
    assert len(hashes) == len(NAMES)
    assert tokenizer_sha256(CharTokenizer("ab")) != tokenizer_sha256(CharTokenizer("ba"))


@pytest.mark.parametrize("name", ["byte", "bpe"])
def test_streams_have_whole_characters_and_replace_broken_ones(name):
    tokenizer = tokenizers()[name]
    whole = list(tokenizer.stream(b"a\xc3\xb8"))
    assert whole == ["a", "ø"]
    assert decode(tokenizer, b"a\xc3") == "a\ufffd"
