import gzip
import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psgd_lm import text_files
from psgd_lm.text_files import TextFile, find_files, joined, section
from psgd_optim.types import InputError

TEXT = "añ日😀\r\nb\n" * 50


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return TextFile(path, path.name)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 2**20])
def test_text_in_pieces_is_the_text(tmp_path, monkeypatch, size):
    monkeypatch.setattr(text_files, "PIECE_BYTES", size)
    assert "".join(write(tmp_path / "a.txt", TEXT).pieces()) == TEXT


@pytest.mark.parametrize(("suffix", "opened"), [(".xz", lzma.open), (".gz", gzip.open)])
def test_compressed_text_is_the_text(tmp_path, suffix, opened):
    path = tmp_path / f"a.txt{suffix}"
    with opened(path, "wb") as file:
        file.write(TEXT.encode())
    assert "".join(TextFile(path, "a").pieces()) == TEXT


@pytest.mark.parametrize("suffix", [".xz", ".gz"])
@pytest.mark.parametrize("damage", ["not compressed", "cut"])
def test_damaged_compressed_file_is_refused(tmp_path, suffix, damage):
    whole = (lzma if suffix == ".xz" else gzip).compress(TEXT.encode())
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(whole[:-20] if damage == "cut" else b"plain text, and some more of it")
    with pytest.raises(InputError, match="a is damaged or not compressed as its suffix says"):
        list(TextFile(path, "a").pieces())


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"ab\ncd\n\xff", r"byte 0xff in line 3, at byte offset 6"),
        ("日\n日".encode()[:-1], r"byte 0xe6 in line 2, at byte offset 4"),
        (b"\n\n\xe6\x97x", r"byte 0xe6 in line 3, at byte offset 2"),
    ],
)
def test_what_is_not_utf8_is_named_with_its_place(tmp_path, monkeypatch, size, content, place):
    monkeypatch.setattr(text_files, "PIECE_BYTES", size)
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"here is not UTF-8: {place}; convert it"):
        list(TextFile(path, "here").pieces())


def test_folders_are_sorted_and_hidden_files_left_out(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/b/c.txt", ".hidden", ".git/x", "a.txt"):
        write(tmp_path / "in" / name, name)
    write(tmp_path / "first.txt", "1")
    files = find_files([str(tmp_path / "first.txt"), str(tmp_path / "in")])
    names = [str(file.path.relative_to(tmp_path)) for file in files]
    assert names == ["first.txt", "in/a/b/c.txt", "in/a/z.txt", "in/a.txt", "in/b.txt"]


def test_missing_inputs_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing.txt does not exist; name text files"):
        find_files([str(tmp_path / "nothing.txt")])
    with pytest.raises(InputError, match=r"has no file; name text files"):
        find_files([str(tmp_path)])


@pytest.mark.parametrize(
    ("separator", "expected"),
    [(None, "one<e>\ntwo\n"), ("<e>", "one<e>\ntwo\n<e>"), ("\n\n", "one<e>\n\n\ntwo\n\n\n")],
)
def test_separator_follows_every_file_that_does_not_end_with_it(tmp_path, separator, expected):
    files = [write(tmp_path / "a", "one<e>\n"), write(tmp_path / "b", "two\n")]
    assert "".join(joined(files, separator)) == expected


def test_file_that_ends_with_blank_separator_gets_no_other(tmp_path):
    files = [write(tmp_path / "a", "one\n\n"), write(tmp_path / "b", "")]
    assert "".join(joined(files, "\n\n")) == "one\n\n"


LINES = st.text("ab\n", max_size=30)


@given(LINES, st.integers(0, 30), st.integers(0, 30), st.integers(1, 7))
def test_section_is_a_slice(text, first, last, size):
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert "".join(section(pieces, first, last)) == text[first:last]
    assert "".join(section(pieces, first)) == text[first:]


@given(LINES, st.integers(0, 30), st.integers(1, 7))
def test_sections_of_whole_lines_end_behind_a_line_end_and_miss_nothing(text, cut, size):
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    first = "".join(section(pieces, 0, cut, whole_lines=True))
    assert first + "".join(section(pieces, cut, whole_lines=True)) == text
    # The first line end at or after the cut, or the one just before it.
    at = text.find("\n", cut - 1) if cut else -2
    assert first == (text if at == -1 else text[: at + 1] if cut else "")
