import pytest

from psgd_lm.tokenizer import TokenizerSettings, make_tokenizer, tokenizer_from_dict
from psgd_optim.types import InputError


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        (TokenizerSettings(), 4),
        (TokenizerSettings(name="byte"), 256),
        (TokenizerSettings(name="word"), 3),
        (TokenizerSettings(name="word", vocab_size=2), 2),
        (TokenizerSettings(name="bpe", vocab_size=257), 257),
        (TokenizerSettings(name="bpe", vocab_size=257, separator="|"), 257),
    ],
)
def test_each_learns_from_its_part(settings, tokens):
    # word and bpe must not see what is evaluated on; char must.
    tokenizer = make_tokenizer(settings, ["aa aa aa"], ["aa", " b", "z"])
    assert tokenizer.name == settings.name
    assert tokenizer.vocab_size == tokens


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "byte", "vocab_size": 300}, r"tokenizer byte, which has its own"),
        ({"name": "bpe", "vocab_size": 255}, r"--vocab-size 256 or more"),
        ({"name": "bpe", "vocab_size": 256, "separator": "x"}, r"--vocab-size 257 or more"),
        ({"name": "word", "vocab_size": 1}, r"--vocab-size 2 or more"),
        ({"name": "bpe", "separator": ""}, r"empty separator"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        TokenizerSettings(**given)


def test_unknown_kind_is_refused():
    with pytest.raises(InputError, match="'words'; this version knows char, byte, word, bpe"):
        tokenizer_from_dict({"name": "words"})
