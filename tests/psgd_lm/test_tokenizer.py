import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from psgd_lm.tokenizer import (
    ByteTokenizer,
    CharTokenizer,
    decode,
    make_tokenizer,
    tokenizer_from_dict,
    tokenizer_sha256,
)
from psgd_optim.types import InputError

UNICODE = st.text(st.characters(exclude_categories=("Cs",)))


@given(UNICODE)
def test_bytes_round_trip_any_unicode(text):
    tokenizer = ByteTokenizer()
    tokens = tokenizer.encode(text)
    assert tokens.dtype == torch.int64
    assert decode(tokenizer, tokens.tolist()) == text


@given(UNICODE.filter(bool))
def test_characters_round_trip_their_own_text(text):
    tokenizer = CharTokenizer.of(text)
    tokens = tokenizer.encode(text)
    assert len(tokens) == len(text)
    assert decode(tokenizer, tokens.tolist()) == text


@pytest.mark.parametrize("name", ["char", "byte"])
@given(text=UNICODE.filter(bool))
def test_byte_lengths_add_up_to_the_size_of_the_text(name, text):
    tokenizer = make_tokenizer(name, text)
    lengths = tokenizer.byte_lengths()
    assert lengths.shape == (tokenizer.vocab_size,)
    assert int(lengths[tokenizer.encode(text)].sum()) == len(text.encode())


@pytest.mark.parametrize("name", ["char", "byte"])
def test_json_rebuilds_the_tokenizer(name):
    tokenizer = make_tokenizer(name, "añ\n日")
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert tokenizer_sha256(again) == tokenizer_sha256(tokenizer)
    assert again.encode("日ñ").tolist() == tokenizer.encode("日ñ").tolist()


def test_hash_depends_on_the_alphabet():
    assert tokenizer_sha256(CharTokenizer("ab")) != tokenizer_sha256(CharTokenizer("ba"))


def test_unknown_character_is_named():
    with pytest.raises(
        InputError, match=r"character 'ø' at position 2 .*use only '\\nab'"
    ) as error:
        CharTokenizer.of("ab\n").encode("abøx")
    assert "\n" not in str(error.value)


def test_long_alphabet_is_cut_in_the_message():
    alphabet = "".join(chr(0x4E00 + i) for i in range(1000))
    with pytest.raises(InputError) as error:
        CharTokenizer(alphabet).encode("a")
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharTokenizer("ab")])
def test_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"'\\ud800'.* at position 1"):
        tokenizer.encode("a\ud800")


def test_unknown_kind_is_refused():
    with pytest.raises(InputError, match="'words'; this version knows char and byte"):
        tokenizer_from_dict({"name": "words"})


def test_bytes_stream_whole_characters_and_replace_broken_ones():
    assert list(ByteTokenizer().stream(b"a\xc3\xb8")) == ["a", "ø"]
    assert decode(ByteTokenizer(), b"a\xc3") == "a�"


@pytest.mark.parametrize(("alphabet", "expected"), [("\nab", 0), ("a\n", 1), ("ab", 0)])
def test_start_token_is_a_line_end_if_there_is_one(alphabet, expected):
    assert CharTokenizer(alphabet).start_token == expected
