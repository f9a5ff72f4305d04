import hashlib
import math
import zlib

import pytest

from psgd_lm import text_measure
from psgd_lm.text_measure import TextMeasure, combined_sha256, zlib_bits_per_byte

TEXT = "naïve text, and text again\n" * 40


def test_pieces_measure_as_the_whole():
    measure = TextMeasure(with_zlib=True)
    pieces = [TEXT[i : i + 7] for i in range(0, len(TEXT), 7)]
    assert "".join(measure.passing(pieces)) == TEXT
    content = TEXT.encode()
    assert measure.size == len(content)
    assert measure.sha256 == hashlib.sha256(content).hexdigest()
    # Fed in pieces, zlib makes the same stream as at once.
    assert measure.zlib_bits_per_byte == 8 * len(zlib.compress(content, 9)) / len(content)
    assert measure.zlib_bits_per_byte == zlib_bits_per_byte(TEXT)


def test_zlib_sees_the_beginning_only(monkeypatch):
    monkeypatch.setattr(text_measure, "ZLIB_BYTES", 100)
    content = TEXT.encode()[:100]
    assert zlib_bits_per_byte(TEXT) == pytest.approx(8 * len(zlib.compress(content, 9)) / 100)


def test_what_was_not_measured_is_not_a_number():
    assert math.isnan(TextMeasure().zlib_bits_per_byte)


def test_hash_of_parts_knows_which_part_is_which():
    assert combined_sha256({"a": "1", "b": "2"}) == combined_sha256({"b": "2", "a": "1"})
    assert combined_sha256({"a": "1", "b": "2"}) != combined_sha256({"a": "2", "b": "1"})
