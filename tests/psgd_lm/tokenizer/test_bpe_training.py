"""The merges against a trainer that counts everything again before each of them."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from psgd_lm.tokenizer import BPETokenizer, bpe_training
from psgd_lm.tokenizer.bpe_training import GPT2_PATTERN, count_pretokens, train_bpe


def slow_merges(text: str, merges: int) -> list[bytes]:
    """Sennrich et al., section 3.2, on runs of bytes objects; equal counts go by their bytes."""
    pretokens = regex.findall(GPT2_PATTERN, text)
    words = Counter(tuple(bytes([byte]) for byte in p.encode()) for p in pretokens)
    tokens = [bytes([byte]) for byte in range(256)]
    while len(tokens) < 256 + merges:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        joined: Counter[tuple[bytes, ...]] = Counter()
        for word, count in words.items():
            new: list[bytes] = []
            for part in word:
                if new and (new[-1], part) == best and not isinstance(new[-1], Merged):
                    new[-1] = Merged(new[-1] + part)
                else:
                    new.append(part)
            joined[tuple(bytes(part) for part in new)] += count
        words = joined
        tokens.append(best[0] + best[1])
    return tokens


class Merged(bytes):
    """A token that was made in this round and is not merged again in it."""


REPETITIVE = st.text("aab \n", max_size=200)


@given(st.one_of(REPETITIVE, st.text("aaaaab", max_size=80), st.text(max_size=60)))
def test_merges_are_those_of_the_slow_trainer(text):
    text = text.encode("utf-8", "replace").decode()
    assert train_bpe([text], 40) == slow_merges(text, 40)


def test_merges_of_prose_are_those_of_the_slow_trainer():
    text = Path(bpe_training.__file__).read_text(encoding="utf-8")
    assert train_bpe([text], 150) == slow_merges(text, 150)


def test_training_stops_where_nothing_occurs_twice():
    assert train_bpe(["abcdef"], 100) == [bytes([byte]) for byte in range(256)]


def test_vocabulary_has_the_size_asked_for():
    text = "the cat sat on the mat with the hat " * 3
    assert BPETokenizer.of_pieces([text], 265).vocab_size == 265
    assert BPETokenizer.of_pieces([text], 265, "|").vocab_size == 265


def test_separator_is_not_learned():
    tokens = train_bpe(["a<|end|>b<|end|>" * 50], 40, "<|end|>")
    assert not any(b"end" in token for token in tokens)


def test_only_the_beginning_of_a_long_text_is_learned_from(monkeypatch):
    read: list[int] = []

    def pieces():
        for i in range(100):
            read.append(i)
            yield "some words " * 10

    monkeypatch.setattr(bpe_training, "MOST_BYTES", 1000)
    assert sum(count_pretokens(pieces()).values()) == len(read) * 21
    assert len(read) == 10


def test_rare_pretokens_are_left_out(monkeypatch):
    monkeypatch.setattr(bpe_training, "KEPT_PRETOKENS", 2)
    assert count_pretokens([" b a a a c c b"]) == {b" a": 3, b" b": 2}


@pytest.mark.parametrize("order", [1, -1])
def test_order_of_the_text_does_not_matter_among_equals(order):
    words = [" ab", " cd", " ef", " gh"][::order]
    assert train_bpe(words * 2, 3)[256:] == [b" a", b" c", b" e"]
