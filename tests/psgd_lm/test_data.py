import gzip
import lzma

import pytest

from psgd_lm.batches import Windows
from psgd_lm.data import DataConfig, load_data
from psgd_lm.prepare import PrepareConfig, prepare
from psgd_lm.tokenizer import decode, tokenizer_sha256
from psgd_optim.types import InputError


def test_split_is_the_first_90_and_the_last_10_percent(text_file):
    text = text_file.read_text()
    data = load_data(DataConfig(path=str(text_file)), 8)
    cut = len(text) * 9 // 10
    for part, expected in ((data.train, text[:cut]), (data.validation, text[cut:])):
        assert decode(data.tokenizer, part.span(0, len(part)).tolist()) == expected


def test_tiny_shakespeare_has_the_customary_split(real_data):
    data = load_data(DataConfig(path=str(real_data("shakespeare/input.txt"))), 256)
    assert (len(data.train), len(data.validation)) == (1_003_854, 111_540)
    assert data.tokenizer.vocab_size == 65


@pytest.mark.parametrize("length", [1, 80])
def test_text_shorter_than_a_context_is_refused(tmp_path, length):
    path = tmp_path / "short.txt"
    path.write_text("a" * length)
    # 80 characters: the 72 to train on are enough, the 8 to validate on are not.
    with pytest.raises(InputError, match=r"has \d+ tokens, a window takes 9; give a longer text"):
        load_data(DataConfig(path=str(path)), 8)


def test_shortest_text_that_fits_is_taken(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("a" * 90)
    data = load_data(DataConfig(path=str(path)), 8)
    batch = Windows(data.validation, context=8, batch_size=3, seed=0).at(0)
    assert batch.inputs.shape == (3, 8)


@pytest.mark.parametrize("fraction", [0.0, 1.0, float("nan")])
def test_fraction_outside_0_and_1_is_refused(fraction):
    with pytest.raises(InputError, match=r"--data\.validation-fraction a number between 0 and 1"):
        DataConfig(validation_fraction=fraction)


@pytest.mark.parametrize("name", ["byte", "word", "bpe"])
def test_every_tokenizer_gives_the_text_back(text_file, name):
    config = DataConfig(path=str(text_file), tokenizer=name)
    data = load_data(config, 8)
    ids = (part.span(0, len(part)).tolist() for part in (data.train, data.validation))
    parts = [decode(data.tokenizer, part) for part in ids]
    assert "".join(parts) == text_file.read_text()
    if name == "word":
        assert parts[0].endswith("dog\n")  # lines stay whole


def test_compressed_text_is_the_same_text(tmp_path, text_file):
    packed = tmp_path / "packed.txt.xz"
    packed.write_bytes(lzma.compress(text_file.read_bytes()))
    plain, packed_data = (load_data(DataConfig(path=str(p)), 8) for p in (text_file, packed))
    assert plain.sha256 == packed_data.sha256
    assert plain.train.span(0, 50).equal(packed_data.train.span(0, 50))


@pytest.mark.parametrize("valid", ["valid.txt", "validation.txt.xz", "val.txt.gz"])
def test_folder_with_a_file_per_part(tmp_path, valid):
    opened = {"xz": lzma.open, "gz": gzip.open}.get(valid.rsplit(".", 1)[1], open)
    (tmp_path / "train.txt").write_text(" a b \n" * 20)
    (tmp_path / "test.txt").write_text(" a rare \n" * 20)
    with opened(tmp_path / valid, "wb") as file:
        file.write(b" b c \n" * 20)
    data = load_data(DataConfig(path=str(tmp_path), tokenizer="word"), 8)
    assert data.tokenizer.to_dict()["words"] == ["<eos>", "<unk>", "a", "b"]  # of the training part
    assert data.train.span(0, 3).tolist() == [2, 3, 0]
    assert data.validation.span(0, 3).tolist() == [3, 1, 0]
    assert data.test is not None
    assert data.test.span(0, 3).tolist() == [2, 1, 0]
    characters = load_data(DataConfig(path=str(tmp_path)), 8)
    assert characters.tokenizer.to_dict()["alphabet"] == "\n abcer"  # of all parts
    assert characters.sha256 == data.sha256
    assert data.provenance["bytes"] == 20 * (6 + 9 + 6)


def test_text_moved_to_another_part_is_another_text(tmp_path):
    shas = set()
    for cut in (100, 200):
        (tmp_path / "train.txt").write_text("a" * cut)
        (tmp_path / "valid.txt").write_text("a" * (300 - cut))
        shas.add(load_data(DataConfig(path=str(tmp_path)), 8).sha256)
    assert len(shas) == 2


def test_short_test_part_is_refused(tmp_path):
    for name, length in (("train", 20), ("valid", 20), ("test", 8)):
        (tmp_path / f"{name}.txt").write_text("a" * length)
    with pytest.raises(InputError, match=r"test part of .* has 8 tokens, a window takes 9"):
        load_data(DataConfig(path=str(tmp_path)), 8)


def test_folder_without_text_is_refused(tmp_path):
    (tmp_path / "train.txt").write_text("a")
    with pytest.raises(InputError, match=r"has no text: give --data\.path a folder with manifest"):
        load_data(DataConfig(path=str(tmp_path)), 8)


@pytest.mark.parametrize("name", ["char", "byte", "word", "bpe"])
def test_prepared_text_has_the_tokens_of_the_text(tmp_path, text_file, name):
    config = PrepareConfig(
        inputs=(str(text_file),), out=tmp_path / "out", tokenizer=name, shard_tokens=100
    )
    prepare(config)
    direct = load_data(DataConfig(path=str(text_file), tokenizer=name), 8)
    prepared = load_data(DataConfig(path=str(tmp_path / "out")), 8)
    assert tokenizer_sha256(prepared.tokenizer) == tokenizer_sha256(direct.tokenizer)
    assert prepared.zlib_bits_per_byte == direct.zlib_bits_per_byte
    for part in ("train", "validation"):
        one, other = getattr(prepared, part), getattr(direct, part)
        assert one.span(0, len(one)).equal(other.span(0, len(other)))


def test_prepared_text_refuses_other_tokens(tmp_path, text_file):
    prepare(PrepareConfig(inputs=(str(text_file),), out=tmp_path / "out"))
    load_data(DataConfig(path=str(tmp_path / "out"), tokenizer="char"), 8)
    with pytest.raises(InputError, match=r"prepared with the tokenizer char, not word; leave"):
        load_data(DataConfig(path=str(tmp_path / "out"), tokenizer="word"), 8)
    with pytest.raises(InputError, match=r"prepared with 28 tokens, more than 20; leave"):
        load_data(DataConfig(path=str(tmp_path / "out"), vocab_size=20), 8)


def test_settings_of_the_tokenizer_are_checked_at_once():
    with pytest.raises(InputError, match="--vocab-size"):
        DataConfig(tokenizer="bpe", vocab_size=3)


def test_penn_treebank_folder(real_data):
    folder = real_data("ptb/train.txt.xz").parent
    data = load_data(DataConfig(path=str(folder), tokenizer="word"), 35)
    assert data.test is not None
    counts = [len(part) for part in (data.train, data.validation, data.test)]
    assert counts == [929_589, 73_760, 82_430]
    assert data.tokenizer.vocab_size == 10_000
    # One byte per line short of the text: the blank before each line.
    lengths = data.tokenizer.byte_lengths()
    assert int(lengths[data.validation.span(0, 73_760)].sum()) == 399_782 - 3_370
