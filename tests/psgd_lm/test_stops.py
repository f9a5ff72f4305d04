from hypothesis import given
from hypothesis import strategies as st

from psgd_lm.stops import until_stop

LETTERS = st.text("ab", max_size=4)  # two letters: stop strings overlap with themselves


@given(
    pieces=st.lists(LETTERS, max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
)
def test_text_ends_where_the_first_stop_string_begins(pieces, stops):
    # The definition: of all stop strings, the one that is complete first ends the text.
    text, end = "".join(pieces), None
    for complete in range(len(text) + 1):
        starts = [complete - len(s) for s in stops if text[:complete].endswith(s)]
        if starts:
            end = min(starts)
            break
    shown = "".join(until_stop(iter(pieces), stops))
    if end is None:
        assert shown == text
    elif all(len(piece) <= 1 for piece in pieces):
        assert shown == text[:end]
    else:  # in a longer piece, the one that begins first
        assert not any(stop in shown for stop in stops)
        assert text.startswith(shown)
        assert any(text[len(shown) :].startswith(stop) for stop in stops)


@given(text=st.text("ab", max_size=20), stops=st.lists(st.text("ab", min_size=1, max_size=4)))
def test_what_is_certain_is_not_held_back(text, stops):
    read = 0

    def pieces():
        nonlocal read
        for character in text:
            read += 1
            yield character

    shown = ""
    for piece in until_stop(pieces(), stops):
        shown += piece
        if not any(stop in text[:read] for stop in stops) and read < len(text):
            held = text[len(shown) : read]
            assert not held or any(stop.startswith(held) for stop in stops)


def test_nothing_is_read_after_a_stop():
    def pieces():
        yield from "say it"
        raise AssertionError("read on")

    assert "".join(until_stop(pieces(), ["it"])) == "say "
