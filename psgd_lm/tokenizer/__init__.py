"""Text to token ids and back: by character, byte, word, or byte-level BPE."""

from psgd_lm.tokenizer.base import (
    Tokenizer,
    decode,
    encode_pieces,
    saved_sha256,
    tokenizer_sha256,
)
from psgd_lm.tokenizer.bpe import BPETokenizer
from psgd_lm.tokenizer.byte import ByteTokenizer
from psgd_lm.tokenizer.char import CharTokenizer
from psgd_lm.tokenizer.choice import (
    TokenizerName,
    TokenizerSettings,
    make_tokenizer,
    tokenizer_from_dict,
)
from psgd_lm.tokenizer.gpt2 import GPT2Tokenizer, load_gpt2
from psgd_lm.tokenizer.word import WordTokenizer

__all__ = [
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "GPT2Tokenizer",
    "Tokenizer",
    "TokenizerName",
    "TokenizerSettings",
    "WordTokenizer",
    "decode",
    "encode_pieces",
    "load_gpt2",
    "make_tokenizer",
    "saved_sha256",
    "tokenizer_from_dict",
    "tokenizer_sha256",
]
