import base64

import pytest
import tiktoken

from psgd_lm.corpus import embedded_corpus
from psgd_lm.tokenizer import BPETokenizer, decode
from psgd_optim.types import InputError

BYTES = [bytes([byte]) for byte in range(256)]


def test_encoding_is_tiktokens():
    tokenizer = BPETokenizer([*BYTES, b"th", b"the", b" the"], "|")
    assert isinstance(tokenizer.encoding, tiktoken.Encoding)
    assert tokenizer.encode("the the|th").tolist() == [257, 258, 259, 256]
    assert tokenizer.encoding.encode_ordinary("the the") == [257, 258]
    assert tokenizer.byte_lengths()[255:].tolist() == [1, 2, 3, 4, 1]


def test_separator_is_one_token_and_the_start():
    tokenizer = BPETokenizer(BYTES, "<|endoftext|>")
    tokens = tokenizer.encode("a<|endoftext|>b")
    assert tokens.tolist() == [97, 256, 98]
    assert tokenizer.start_token == 256
    assert tokenizer.vocab_size == 257
    assert decode(tokenizer, tokens.tolist()) == "a<|endoftext|>b"


def test_without_a_separator_it_is_text_and_a_line_end_starts():
    tokenizer = BPETokenizer(BYTES)
    assert len(tokenizer.encode("<|endoftext|>")) == 13
    assert tokenizer.start_token == 10


def test_saved_tokens_are_base64():
    saved = BPETokenizer([*BYTES, b" a"]).to_dict()
    assert base64.b64decode(saved["tokens"].split(" ")[256]) == b" a"


def test_token_twice_is_refused():
    with pytest.raises(InputError, match="bpe vocabulary has a token twice"):
        BPETokenizer([*BYTES, b"a"])


def test_endless_run_of_line_ends_is_refused():
    with pytest.raises(InputError, match=r"run of some million blanks.*char or byte") as error:
        BPETokenizer(BYTES).encode("\n" * 2_000_000 + "x")
    assert "\n" not in str(error.value)


def test_embedded_corpus_gives_4096_tokens_that_stand_for_four_bytes_each():
    text = embedded_corpus().text
    tokenizer = BPETokenizer.of_pieces([text], 4096)
    assert tokenizer.vocab_size == 4096
    tokens = tokenizer.encode(text)
    # Python versions differ in their texts, and all are English prose: 4.1 on 3.11.7.
    assert 3.7 < len(text.encode()) / len(tokens) < 4.5
    assert decode(tokenizer, tokens.tolist()) == text
