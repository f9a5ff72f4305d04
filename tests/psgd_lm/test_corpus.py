import hashlib
import platform

import pytest

from psgd_lm import corpus
from psgd_lm.corpus import embedded_corpus, load_corpus, read_corpus, standard_library_corpus
from psgd_optim.types import InputError


def test_embedded_corpus_is_the_topics_in_a_fixed_order():
    first, second = embedded_corpus(), load_corpus(None)
    assert first == second
    assert first.source == corpus.TOPICS
    assert len(first.text) > 300_000
    assert "assert_stmt" not in first.text[:20]  # texts, not names


def test_validation_part_does_not_stand_in_the_training_part():
    text = embedded_corpus().text
    cut = int(0.9 * len(text))
    size, step = 200, 50
    pieces = [text[i : i + size] for i in range(cut, len(text) - size, step)]
    assert len(pieces) > 500
    assert not any(piece in text[:cut] for piece in pieces)


def test_provenance_identifies_the_text():
    text = embedded_corpus()
    provenance = text.provenance()
    assert provenance["sha256"] == hashlib.sha256(text.text.encode()).hexdigest()
    assert provenance["python"] == platform.python_version()
    assert provenance["bytes"] == len(text.text.encode())


def test_without_the_topics_the_standard_library_is_the_corpus(monkeypatch):
    monkeypatch.setattr(corpus, "TOPICS", "pydoc_data.no_such_topics")
    text = embedded_corpus()
    assert text.source == corpus.STANDARD_LIBRARY
    assert len(text.text) >= corpus.SOURCE_BYTES
    assert text == embedded_corpus()


def test_folder_without_modules_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no Python source.*--data\.path"):
        standard_library_corpus(tmp_path)


def test_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("a\r\nø\n".encode())
    text = read_corpus(path)
    assert text.text == "a\r\nø\n"
    assert text.source == str(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"Cannot read .*No such file.*name a UTF-8 text file"),
        (b"", r"is empty; give --data\.path"),
        (b"ab\xffc", r"not UTF-8: byte 0xff in line 1, at byte offset 2; convert it"),
    ],
)
def test_unusable_file_is_refused(tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_corpus(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_folder_instead_of_a_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="directory"):
        read_corpus(tmp_path)
