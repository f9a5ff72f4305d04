import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgd_lm.tokenizer import CharTokenizer, decode
from psgd_optim.types import InputError

UNICODE = st.text(st.characters(exclude_categories=("Cs",)), min_size=1)


@given(UNICODE)
def test_characters_round_trip_their_own_text(text):
    tokenizer = CharTokenizer.of(text)
    tokens = tokenizer.encode(text)
    assert len(tokens) == len(text)
    assert decode(tokenizer, tokens.tolist()) == text
    assert int(tokenizer.byte_lengths()[tokens].sum()) == len(text.encode())


def test_alphabet_is_sorted_and_of_all_pieces():
    saved = CharTokenizer.of_pieces(["b\n", "ñ日", "a"]).to_dict()
    assert saved == {"name": "char", "alphabet": "\nabñ日"}


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


@pytest.mark.parametrize(("alphabet", "expected"), [("\nab", 0), ("a\n", 1), ("ab", 0)])
def test_start_token_is_a_line_end_if_there_is_one(alphabet, expected):
    assert CharTokenizer(alphabet).start_token == expected
