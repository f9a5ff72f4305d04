import errno
import os
import struct

import numpy as np
import pytest
import torch

from psgd_lm import shards
from psgd_lm.file_tokens import FileTokens
from psgd_lm.shards import HEADER, ShardWriter, open_shard, token_bytes, verify_shard
from psgd_optim.types import InputError

SHA = "ab" * 32


def write(folder, ids, size=2, most_tokens=10**6):
    writer = ShardWriter(folder, "train", size=size, tokenizer_sha256=SHA, most_tokens=most_tokens)
    runs = torch.tensor(ids).split(7) if ids else []
    writer.write(runs)
    return writer


@pytest.fixture
def shard(tmp_path):
    write(tmp_path, [*range(100), 999])
    return tmp_path / "train-00000.tokens"


@pytest.mark.parametrize("size", [1, 2, 4])
def test_file_is_a_header_and_the_ids(tmp_path, size):
    ids = [0, 1, 256**size - 1]
    writer = write(tmp_path, ids, size)
    assert (writer.files, writer.count) == (["train-00000.tokens"], 3)
    content = (tmp_path / writer.files[0]).read_bytes()
    assert content[:24] == b"PSGDTOKS" + struct.pack("<IIQ", 1, size, 3)
    assert content[24:56] == bytes.fromhex(SHA)
    assert np.frombuffer(content[88:], f"<u{size}").tolist() == ids
    assert [file.name for file in tmp_path.iterdir()] == writer.files  # no partial one


@pytest.mark.parametrize("most_tokens", [1, 6, 7, 8, 50, 101, 1000])
def test_windows_across_shards_are_those_of_one_run(tmp_path, most_tokens):
    ids = [*range(100), 999]
    writer = write(tmp_path, ids, most_tokens=most_tokens)
    assert len(writer.files) == -(-101 // most_tokens)
    tokens = FileTokens([open_shard(tmp_path / name, SHA, 1000) for name in writer.files])
    assert len(tokens) == 101
    starts = torch.arange(101 - 20)
    expected = torch.tensor(ids).unfold(0, 20, 1)[: len(starts)]
    assert tokens.windows(starts, 20).equal(expected)
    assert tokens.windows(starts, 20).dtype == torch.int64
    assert tokens.span(0, 101).tolist() == ids
    assert tokens.to(torch.device("cpu")).span(99, 101).tolist() == [99, 999]


def test_reading_does_not_grow_the_process(tmp_path):
    # 64 MB of tokens, read whole, in windows: mapped memory would grow by all of it.
    writer = ShardWriter(tmp_path, "train", size=4, tokenizer_sha256=SHA, most_tokens=2**24)
    writer.write(torch.zeros(2**20, dtype=torch.int64) for _ in range(16))
    tokens = FileTokens([open_shard(tmp_path / "train-00000.tokens", SHA, 2**20)])

    def resident() -> int:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    tokens.windows(torch.arange(64) * 1024, 1024)
    before = resident()
    for first in range(0, 2**24, 2**16):
        tokens.windows(first + torch.arange(64) * 1024, 1024)
    assert resident() - before < 2**24


def damage(path, at, content):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


@pytest.mark.parametrize(
    ("at", "content", "message"),
    [
        (0, b"NOSHARD!", r"is not a shard of tokens"),
        (8, struct.pack("<I", 2), r"is a shard of version 2, not 1"),
        (12, struct.pack("<I", 3), r"has 3 bytes per token, not 1, 2 or 4"),
        (12, struct.pack("<I", 4), r"has 290 bytes instead of 492"),
        (16, struct.pack("<Q", 102), r"has 290 bytes instead of 292"),
        (24, b"\0", r"written with the tokenizer of SHA-256 00abab"),
        (HEADER.size, b"\7", r"does not have the SHA-256 in its header"),
    ],
)
def test_damaged_shard_is_refused(shard, at, content, message):
    damage(shard, at, content)
    with pytest.raises(InputError, match=message) as error:
        open_shard(shard, SHA, 1000)
    assert str(error.value).endswith("prepare the text again.")


@pytest.mark.parametrize("length", [0, 50, 289])
def test_truncated_shard_is_refused(shard, length):
    os.truncate(shard, length)
    with pytest.raises(InputError, match=r"cut off|instead of"):
        open_shard(shard, SHA, 1000)


def test_missing_shard_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"Cannot read the shard .*No such file"):
        open_shard(tmp_path / "train-00000.tokens", SHA, 1000)


def test_large_shards_are_verified_on_demand_only(shard, monkeypatch):
    monkeypatch.setattr(shards, "CHECKED_BYTES", 10)
    damage(shard, HEADER.size, b"\7")
    open_shard(shard, SHA, 1000)
    with pytest.raises(InputError, match="SHA-256"):
        verify_shard(shard)


def test_vocabulary_over_the_type_is_refused(shard):
    assert [token_bytes(n) for n in (256, 257, 65_536, 65_537)] == [1, 2, 2, 4]
    with pytest.raises(InputError, match=r"vocabulary has 70,000 tokens, uint16 holds 65,536"):
        open_shard(shard, SHA, 70_000)
    with pytest.raises(InputError, match=r"uint8 holds 256; use uint16"):
        token_bytes(50_257, 1)


def test_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        write(tmp_path, [1, 2, 3])
    assert error.value.filename == str(tmp_path / "train-00000.tokens")
