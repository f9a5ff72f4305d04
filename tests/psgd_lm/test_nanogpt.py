import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from psgd_lm.data import DataConfig, load_data
from psgd_lm.nanogpt import read_meta
from psgd_optim.types import InputError

ALPHABET = "\nabc"


@pytest.fixture
def folder(tmp_path):
    for name, count in (("train", 90), ("val", 20)):
        (np.arange(count) % 4).astype(np.uint16).tofile(tmp_path / f"{name}.bin")
    itos = dict(enumerate(ALPHABET))
    meta = {"vocab_size": 4, "itos": itos, "stoi": {c: i for i, c in itos.items()}}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    return tmp_path


def test_characters_and_tokens_are_read(folder):
    data = load_data(DataConfig(path=str(folder)), 8)
    assert data.tokenizer.to_dict() == {"name": "char", "alphabet": ALPHABET}
    assert (len(data.train), len(data.validation), data.test) == (90, 20, None)
    assert data.train.span(86, 90).tolist() == [2, 3, 0, 1]
    assert data.zlib_bits_per_byte > 0
    assert data.sha256 == load_data(DataConfig(path=str(folder)), 8).sha256


def test_other_tokens_have_another_hash(folder):
    before = load_data(DataConfig(path=str(folder)), 8).sha256
    np.zeros(90, np.uint16).tofile(folder / "train.bin")
    assert load_data(DataConfig(path=str(folder)), 8).sha256 != before


def test_without_an_alphabet_the_tokens_are_gpt2s(folder, real_data):
    (folder / "meta.pkl").unlink()
    files = str(real_data("gpt2_bpe/vocab.bpe").parent)
    data = load_data(DataConfig(path=str(folder), gpt2_files=files), 8)
    assert data.tokenizer.name == "gpt2"


class Harmful:
    def __reduce__(self):
        return os.system, ("echo harm",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"itos": Harmful()}), r"more than an alphabet \(it names posix\.system\)"),
        (pickle.dumps({"itos": Path("x")}), r"more than an alphabet \(it names pathlib"),
        (pickle.dumps({"itos": {0: "ab"}}), r"has no alphabet of characters"),
        (pickle.dumps({"itos": {1: "a"}}), r"has no alphabet of characters"),
        (pickle.dumps([1]), r"has no alphabet of characters"),
        (b"\x80", r"is damaged or more than an alphabet"),
    ],
)
def test_pickle_with_anything_else_is_refused(tmp_path, capfd, content, message):
    path = tmp_path / "meta.pkl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_meta(path)
    assert "harm" not in capfd.readouterr().out


def test_tokens_beyond_the_vocabulary_are_refused(folder):
    np.array([0, 4] * 10, np.uint16).tofile(folder / "val.bin")
    with pytest.raises(InputError, match=r"val\.bin has the token 4, its vocabulary 4 tokens"):
        load_data(DataConfig(path=str(folder)), 8)


def test_half_a_token_is_refused(folder):
    (folder / "train.bin").write_bytes(b"abc")
    with pytest.raises(InputError, match=r"has 3 bytes, no whole number of 16-bit tokens"):
        load_data(DataConfig(path=str(folder)), 8)
