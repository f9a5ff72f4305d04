import itertools
from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psgd_lm.pieces import overlapping_windows, streams, windows
from psgd_lm.tokens import InMemory

TEXT = torch.arange(120, dtype=torch.int16)


def check(pieces, count):
    """Every target is the token of its position, inputs are those before, each scored once."""
    scored = Counter()
    for piece in pieces:
        assert torch.equal(piece.targets, piece.positions + 1)
        assert torch.equal(piece.inputs, piece.positions)
        scored.update(piece.positions[piece.scored].tolist())
    assert scored == Counter(range(count - 1))


@given(count=st.integers(2, 120), context=st.integers(1, 40), rows=st.integers(1, 9))
@settings(deadline=None, max_examples=60)
def test_windows_score_every_token_once(count, context, rows):
    pieces = list(windows(InMemory(TEXT[:count]), context, rows))
    check(pieces, count)
    assert all(piece.scored.all() for piece in pieces)
    assert max(len(piece.inputs) for piece in pieces) <= rows


@given(
    count=st.integers(2, 120),
    context=st.integers(2, 40),
    stride=st.integers(1, 39),
    rows=st.integers(1, 9),
)
@settings(deadline=None, max_examples=60)
def test_overlapping_windows_score_every_token_once_with_enough_before_it(
    count, context, stride, rows
):
    stride = min(stride, context - 1)
    pieces = list(overlapping_windows(InMemory(TEXT[:count]), context, stride, rows))
    check(pieces, count)
    for piece in pieces:
        before = piece.positions - piece.positions[:, :1]
        late = piece.positions >= context
        assert (before[piece.scored & late] >= context - stride).all()


@given(count=st.integers(2, 120), rows=st.integers(1, 15), length=st.integers(1, 50))
@settings(deadline=None, max_examples=60)
def test_streams_score_every_token_once_and_go_on(count, rows, length):
    pieces = list(streams(InMemory(TEXT[:count]), rows, length))
    check(pieces, count)
    assert [piece.begins for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    for old, new in itertools.pairwise(pieces):
        assert torch.equal(new.inputs[:, 0], old.targets[:, -1])
