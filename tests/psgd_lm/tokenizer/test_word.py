import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgd_lm.tokenizer import WordTokenizer, decode, word
from psgd_optim.types import InputError

CHARACTERS = st.characters(exclude_categories=("Cs", "Z", "Cc"))
WORDS = st.text(CHARACTERS, min_size=1, max_size=5).filter(lambda text: text != word.EOS)
LINES = st.lists(st.lists(WORDS, max_size=6).map(" ".join), max_size=6).map("\n".join)


@given(LINES)
def test_text_with_single_blanks_comes_back(text):
    tokenizer = WordTokenizer.of_pieces([text])
    assert decode(tokenizer, tokenizer.encode(text).tolist()) == text


def test_the_spelled_out_line_end_comes_back_as_one_without_the_blanks_beside_it():
    tokenizer = WordTokenizer.of_pieces(["0 <eos> 1"])
    assert decode(tokenizer, tokenizer.encode("0 <eos> 1").tolist()) == "0\n1"


def test_words_line_ends_and_unknown_words():
    tokenizer = WordTokenizer.of_pieces([" b b a \n", "\n c\n"])
    assert tokenizer.to_dict()["words"] == ["<eos>", "<unk>", "b", "a", "c"]
    assert tokenizer.encode(" a  zebra\n\n b").tolist() == [3, 1, 0, 0, 2]
    assert list(tokenizer.stream([3, 1, 0, 0, 2])) == ["a", " <unk>", "\n", "\n", "b"]
    assert tokenizer.byte_lengths().tolist() == [1, 6, 2, 2, 2]
    assert tokenizer.start_token == 0


@pytest.mark.parametrize(("after", "text"), [("b", " a b"), ("b ", "a b"), ("b\n", "a b")])
def test_text_goes_on_with_one_blank(after, text):
    tokenizer = WordTokenizer.of_pieces(["a a b"])
    assert "".join(tokenizer.stream(tokenizer.encode("a b").tolist(), after)) == text


def test_byte_lengths_add_up_to_lines_of_words_that_blanks_follow():
    text = "der Hund \nbeißt \n\n"  # as in the Penn Treebank, less the blank before each line
    tokenizer = WordTokenizer.of_pieces([text])
    assert int(tokenizer.byte_lengths()[tokenizer.encode(text)].sum()) == len(text.encode())


def test_vocabulary_keeps_the_most_frequent_words():
    tokenizer = WordTokenizer.of_pieces(["c b b <unk> a <eos> d"], vocab_size=5)
    assert tokenizer.to_dict()["words"] == ["<eos>", "<unk>", "b", "a", "c"]


def test_words_across_pieces_are_whole():
    tokenizer = WordTokenizer.of_pieces(["al", "pha be", "ta", " \n"])
    assert tokenizer.to_dict()["words"][2:] == ["alpha", "beta"]


def test_endless_vocabulary_is_refused(monkeypatch):
    monkeypatch.setattr(word, "MOST_WORDS", 10)
    with pytest.raises(InputError, match=r"more than 10 different words; use the tokenizer bpe"):
        WordTokenizer.of_pieces(f"{i} \n" for i in range(100))


@pytest.mark.parametrize(
    ("folder", "vocabulary", "counts"),
    [
        ("ptb", 10_000, {"train": 929_589, "valid": 73_760, "test": 82_430}),
        ("wikitext-2", 33_278, {"train": 2_088_628, "valid": 217_646, "test": 245_569}),
    ],
)
def test_counts_are_those_that_papers_state(real_data, folder, vocabulary, counts):
    def read(part: str) -> str:
        path = real_data(f"{folder}/{part}.txt.xz")
        with lzma.open(path, "rt", encoding="utf-8", newline="\n") as file:
            return file.read()

    tokenizer = WordTokenizer.of_pieces([read("train")])
    assert tokenizer.vocab_size == vocabulary
    assert {part: len(tokenizer.encode(read(part))) for part in counts} == counts
