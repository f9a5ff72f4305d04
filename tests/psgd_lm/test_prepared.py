import json

import pytest

from psgd_lm.prepare import PrepareConfig, prepare
from psgd_lm.prepared import open_prepared
from psgd_lm.tokenizer import decode
from psgd_optim.types import InputError


@pytest.fixture
def folder(tmp_path, text_file):
    return prepare(PrepareConfig(inputs=(str(text_file),), out=tmp_path / "out")).out


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_parts_come_back(folder, text_file):
    prepared = open_prepared(folder)
    whole = "".join(
        decode(prepared.tokenizer, tokens.span(0, len(tokens)).tolist())
        for tokens in prepared.tokens.values()
    )
    assert list(prepared.tokens) == ["train", "validation"]
    assert whole == text_file.read_text()


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("manifest.json", {"kind": "x"}, r"is of kind 'x', format 1; this version reads"),
        ("manifest.json", {"format": 2}, r"format 2; this version reads"),
        ("tokenizer.json", {"alphabet": "ba"}, r"is not the one that the shards have"),
        ("tokenizer.json", {"name": "word"}, r"is not the one that the shards have"),
    ],
)
def test_what_does_not_belong_together_is_refused(folder, file, values, message):
    change(folder / file, **values)
    with pytest.raises(InputError, match=message):
        open_prepared(folder)


def test_lost_shard_is_refused(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["parts"]["train"]["tokens"] += 1
    change(folder / "manifest.json", **manifest)
    with pytest.raises(InputError, match=r"train shards of .* have 2,376 tokens, .* says 2,377"):
        open_prepared(folder)
    (folder / "train-00000.tokens").unlink()
    with pytest.raises(InputError, match=r"Cannot read the shard"):
        open_prepared(folder)


def test_damaged_manifest_is_refused(folder):
    (folder / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json .* prepare the text again"):
        open_prepared(folder)
    (folder / "manifest.json").write_text('{"kind": "psgd_lm text", "format": 1, "parts": {}}')
    with pytest.raises(InputError, match=r"has no sha256, tokenizer_sha256, zlib_bits_per_byte;"):
        open_prepared(folder)


def test_lost_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no .*tokenizer\.json; name a folder that prepare_text"):
        open_prepared(folder)
