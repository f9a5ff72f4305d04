import errno
import io
import json
import lzma
import os

import pytest

from psgd_lm import text_files
from psgd_lm.output_folder import OLD
from psgd_lm.prepare import PrepareConfig, prepare
from psgd_lm.prepared import open_prepared
from psgd_lm.tokenizer import decode
from psgd_optim.types import InputError

TEXT = "".join(f"line {i} ñ\n" for i in range(200))


def read(folder):
    prepared = open_prepared(folder)
    return {
        part: decode(prepared.tokenizer, tokens.span(0, len(tokens)).tolist())
        for part, tokens in prepared.tokens.items()
    }


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.mark.parametrize("size", [1, 10, 2**20])
@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_fractions_cut_at_characters(tmp_path, text, monkeypatch, size, tokenizer):
    monkeypatch.setattr(text_files, "PIECE_BYTES", size)
    result = prepare(
        PrepareConfig(
            inputs=(str(text),),
            out=tmp_path / "out",
            tokenizer=tokenizer,
            validation_fraction=0.2,
            test_fraction=0.1,
            shard_tokens=50,
        )
    )
    n = len(TEXT)
    cuts = int(n * 0.7), int(n * 0.9)
    assert read(tmp_path / "out") == {
        "train": TEXT[: cuts[0]],
        "validation": TEXT[cuts[0] : cuts[1]],
        "test": TEXT[cuts[1] :],
    }
    assert result.bytes == len(TEXT.encode())
    assert result.tokens == sum(part.tokens for part in result.parts.values())


@pytest.mark.parametrize("fraction", [0.1, 0.101, 0.102, 0.103, 0.104])
def test_words_are_cut_at_lines(tmp_path, text, fraction):
    config = PrepareConfig(
        inputs=(str(text),),
        out=tmp_path / "out",
        tokenizer="word",
        validation_fraction=fraction,
    )
    parts = read(prepare(config).out)
    assert parts["train"] == TEXT[: len(parts["train"])]
    assert all(part.endswith(" ñ\n") for part in parts.values())
    assert parts["validation"].startswith("line ")


def test_parts_can_be_files(tmp_path, text):
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "b.txt").write_text("bbb")
    (folder / "a.txt.xz").write_bytes(lzma.compress(b"aaa"))
    (tmp_path / "test.txt").write_text("ttt")
    config = PrepareConfig(
        inputs=(str(text), str(folder)),
        out=tmp_path / "out",
        validation=(str(folder),),
        test=(str(tmp_path / "test.txt"),),
        separator="|",
    )
    parts = read(prepare(config).out)
    assert parts == {"train": TEXT + "|aaa|bbb|", "validation": "aaa|bbb|", "test": "ttt|"}


def test_standard_input_is_read_like_a_file(tmp_path, text):
    one = prepare(PrepareConfig(inputs=(str(text),), out=tmp_path / "one"))
    stream = io.BytesIO(TEXT.encode())
    other = prepare(PrepareConfig(inputs=("-",), out=tmp_path / "other"), stream)
    assert one.parts == other.parts
    shards = {file.name for file in other.out.iterdir()}
    assert shards == {
        "manifest.json",
        "tokenizer.json",
        "train-00000.tokens",
        "validation-00000.tokens",
    }
    with pytest.raises(InputError, match="standard input is read already"):
        prepare(PrepareConfig(inputs=("-", "-"), out=tmp_path / "third"), io.BytesIO(b"x" * 50))
    with pytest.raises(InputError, match=r"standard input is not UTF-8: byte 0xff in line 2"):
        prepare(PrepareConfig(inputs=("-",), out=tmp_path / "third"), io.BytesIO(b"x\n\xff"))
    assert not list(tmp_path.glob("third*"))


def test_separator_is_one_token_of_bpe(tmp_path, text):
    config = PrepareConfig(
        inputs=(str(text), str(text)), out=tmp_path / "out", tokenizer="bpe", separator="<|end|>"
    )
    prepare(config)
    prepared = open_prepared(tmp_path / "out")
    ids = [t for part in prepared.tokens.values() for t in part.span(0, len(part)).tolist()]
    assert ids.count(prepared.tokenizer.start_token) == 2
    assert "".join(read(tmp_path / "out").values()) == (TEXT + "<|end|>") * 2


def test_manifest_says_what_was_prepared(tmp_path, text):
    prepare(PrepareConfig(inputs=(str(text),), out=tmp_path / "out", dtype="uint32"))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["files"]["inputs"] == [str(text)]
    assert manifest["parts"]["train"]["bytes"] + manifest["parts"]["validation"]["bytes"] == len(
        TEXT.encode()
    )
    assert 0 < manifest["zlib_bits_per_byte"] < 8
    assert (tmp_path / "out" / "train-00000.tokens").read_bytes()[12] == 4


def test_progress_is_told(tmp_path, text):
    told: list[int] = []
    prepare(PrepareConfig(inputs=(str(text),), out=tmp_path / "out"), advance=told.append)
    assert sum(told) == len(TEXT.encode())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"validation_fraction": 1.0}, r"--validation-fraction a number from 0"),
        ({"test_fraction": -0.1}, r"--test-fraction a number from 0"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, r"leave no text to train on"),
        ({"shard_tokens": 0}, r"--shard-tokens 1 or more"),
        ({"tokenizer": "bpe", "vocab_size": 3}, r"--vocab-size 256 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        PrepareConfig(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"inputs": ()}, r"There is no input; name text files"),
        ({"inputs": ("no-such-file",)}, r"no-such-file does not exist"),
        ({"validation": ("no-such-file",)}, r"no-such-file does not exist"),
        ({"validation_fraction": 0.0}, r"validation part is empty; .*--validation-fraction"),
        ({"dtype": "uint8", "tokenizer": "bpe"}, r"uint8 holds 256; use uint16"),
    ],
)
def test_bad_input_leaves_nothing_behind(tmp_path, text, given, message):
    out = tmp_path / "new" / "out"
    with pytest.raises(InputError, match=message) as error:
        prepare(PrepareConfig(**{"inputs": (str(text),), "out": out, **given}))
    assert "\n" not in str(error.value)
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_other_folders_and_prepared_texts_are_not_overwritten(tmp_path, text):
    out = tmp_path / "out"
    config = PrepareConfig(inputs=(str(text),), out=out)
    prepare(config)
    with pytest.raises(InputError, match=r"has a prepared text; give --overwrite or another"):
        prepare(config)
    prepare(PrepareConfig(inputs=(str(text),), out=out, tokenizer="byte", overwrite=True))
    assert open_prepared(out).tokenizer.name == "byte"
    with pytest.raises(InputError, match=r"exists and is no prepared text"):
        prepare(PrepareConfig(inputs=(str(out / "manifest.json"),), out=tmp_path, overwrite=True))
    inside = out / "input.txt"
    inside.write_text(TEXT)
    with pytest.raises(InputError, match=r"lies in .*, which is written; move one of them"):
        prepare(PrepareConfig(inputs=(str(inside),), out=out, overwrite=True))
    with pytest.raises(InputError, match=r"cannot be made \(.*\); give another --out"):
        prepare(PrepareConfig(inputs=(str(text),), out=text / "out"))


def test_full_disk_leaves_the_old_text(tmp_path, text, monkeypatch):
    out = tmp_path / "out"
    prepare(PrepareConfig(inputs=(str(text),), out=out))
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        prepare(PrepareConfig(inputs=(str(text),), out=out, tokenizer="byte", overwrite=True))
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert {file.name for file in tmp_path.iterdir()} == {"out", "text.txt"}


def test_text_of_a_process_killed_while_replacing_is_found_again(tmp_path, text):
    out = tmp_path / "out"
    config = PrepareConfig(inputs=(str(text),), out=out)
    prepare(config)
    out.rename(tmp_path / f"out{OLD}")
    with pytest.raises(InputError, match="has a prepared text"):
        prepare(config)
    assert open_prepared(out)


def test_link_is_followed(tmp_path, text):
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    prepare(PrepareConfig(inputs=(str(text),), out=tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert open_prepared(real)
