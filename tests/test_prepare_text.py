"""scripts/prepare_text.py, from its command line to what it prints, in this process."""

import errno
import io
import os
import re
from pathlib import Path

import prepare_text
import pytest
from _cli import BAD_INPUT, OK, STORAGE, run

TEXT = "the quick brown fox jumps over the lazy dog\n" * 60


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run the script in a folder with one text; return its exit code, output and error output."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8")

    def call(line, stdin=b""):
        monkeypatch.setattr("sys.argv", ["prepare_text.py", *line.split()])
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = run(prepare_text.main, folder_flag="--out")
        return code, *capsys.readouterr()

    return call


def test_one_line_says_what_was_written(call):
    code, out, err = call("text.txt text.txt --out prepared --tokenizer bpe --vocab-size 288")
    assert (code, err) == (OK, "")
    assert re.fullmatch(
        r"[\d,]+ tokens \(train [\d,]+, validation [\d,]+\) of a vocabulary of 288 from "
        r"5,280 bytes in [\d.]+ s \([\d,]+ tokens/s\): prepared\n",
        out,
    )
    assert Path("prepared/manifest.json").is_file()


def test_standard_input(call):
    code, out, err = call("- --out prepared", TEXT.encode())
    assert (code, err) == (OK, "")
    assert out.startswith("2,640 tokens (train 2,376, validation 264)")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "error: There is no input; name text files, folders, or - for standard input.\n"),
        ("none.txt", "error: none.txt does not exist; name text files or folders with some.\n"),
        ("text.txt --tokeniser bpe", "error: There is no flag --tokeniser; "),
        ("--out x text.txt", "error: Got 'text.txt' where a flag is expected; usage: prepare_text"),
        ("text.txt --tokenizer words", "error: "),
        ("text.txt --tokenizer gpt2 --gpt2-files .", "error: There is no GPT-2 vocabulary in .;"),
    ],
)
def test_bad_input_is_one_line(call, line, message):
    code, out, err = call(line)
    assert (code, out) == (BAD_INPUT, "")
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_help_needs_no_input(call):
    with pytest.raises(SystemExit) as stop:
        call("--help")
    assert stop.value.code == OK


def test_full_disk_is_exit_code_3_with_the_old_text_left(call, monkeypatch):
    assert call("text.txt --out prepared")[0] == OK
    before = Path("prepared/manifest.json").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, out, err = call("text.txt --out prepared --tokenizer byte --overwrite")
    assert (code, out) == (STORAGE, "")
    assert re.fullmatch(
        r"error: cannot write \S+train-00000\.tokens: No space left on device; free space or give "
        r"another --out\.\n",
        err,
    )
    assert Path("prepared/manifest.json").read_bytes() == before
