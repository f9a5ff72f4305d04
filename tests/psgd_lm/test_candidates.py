import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psgd_lm.candidates import Candidates, draw

LOGITS = st.lists(st.integers(-4, 4), min_size=1, max_size=9)  # integers: ties are common


def normalised(p):
    total = sum(p)
    return [x / total for x in p]


def by_definition(logits, seen, c):
    """Go through the definitions one token after the other."""
    values = list(map(float, logits))
    for i in seen:
        values[i] = (
            values[i] / c.repetition_penalty
            if values[i] > 0
            else (values[i] * c.repetition_penalty)
        )
    if c.temperature == 0:
        return [float(i == values.index(max(values))) for i in range(len(values))]
    p = normalised([math.exp((x - max(values)) / c.temperature) for x in values])
    if c.top_k:
        smallest = sorted(p, reverse=True)[: c.top_k][-1]
        p = normalised([x if x >= smallest else 0.0 for x in p])
    if c.top_p < 1:
        kept, total = set(), 0.0
        for i in sorted(range(len(p)), key=lambda i: -p[i]):
            if total >= c.top_p:
                break
            kept.add(i)
            total += p[i]
        p = normalised([x if i in kept else 0.0 for i, x in enumerate(p)])
    return normalised([x if x >= c.min_p * max(p) else 0.0 for x in p])


@given(
    rows=st.lists(st.tuples(LOGITS, st.sets(st.integers(0, 8))), min_size=1, max_size=1),
    temperature=st.sampled_from([0.0, 0.7, 1.0, 3.0]),
    top_k=st.integers(0, 10),
    # No sums of the probabilities of integer logits are near these but by accident of rounding.
    top_p=st.sampled_from([0.0537, 0.3141, 0.61803, 0.9173, 1.0]),
    min_p=st.sampled_from([0.0, 0.0501, 0.2719, 1.0]),
    penalty=st.sampled_from([0.5, 1.0, 1.3]),
)
@settings(deadline=None, max_examples=300)
def test_probabilities_are_those_of_the_definitions(
    rows, temperature, top_k, top_p, min_p, penalty
):
    candidates = Candidates(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=penalty,
    )
    ((logits, chosen),) = rows
    seen = {i for i in chosen if i < len(logits)}
    mask = torch.tensor([[i in seen for i in range(len(logits))]])
    p = candidates.probabilities(torch.tensor([logits]).float(), mask)[0]
    expected = by_definition(logits, seen, candidates)
    torch.testing.assert_close(p, torch.tensor(expected).double(), atol=1e-7, rtol=1e-6)
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-12)


def test_rows_do_not_meet():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    seen = torch.arange(35).view(5, 7) % 3 == 0
    c = Candidates(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.2)
    together = c.probabilities(logits, seen)
    alone = [c.probabilities(logits[i : i + 1], seen[i : i + 1]) for i in range(5)]
    assert torch.equal(together, torch.cat(alone))


def test_draws_follow_the_probabilities():
    p = torch.tensor([[0.0, 0.1, 0.3, 0.6]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([draw(p, [generator]) for _ in range(4000)])
    frequencies = drawn.bincount(minlength=4).double() / 4000
    # Three standard deviations of the frequency of a coin at 4000 throws.
    torch.testing.assert_close(frequencies, p[0], atol=0.024, rtol=0)
    assert frequencies[0] == 0


def test_tiny_temperature_does_not_overflow():
    p = Candidates(temperature=1e-30).probabilities(
        torch.tensor([[50.0, 49.0]]), torch.zeros(1, 2, dtype=torch.bool)
    )
    assert p.tolist() == [[1.0, 0.0]]


def test_padding_tokens_are_never_drawn():
    # A model that pads its vocabulary gives the padding logits of minus infinity.
    p = Candidates(temperature=0.0).probabilities(
        torch.tensor([[-torch.inf, -3.0]]), torch.zeros(1, 2, dtype=torch.bool)
    )
    assert p.tolist() == [[0.0, 1.0]]
    c = Candidates(repetition_penalty=2.0, min_p=0.1, top_p=0.9)
    p = c.probabilities(torch.tensor([[-torch.inf, -3.0]]), torch.ones(1, 2, dtype=torch.bool))
    assert p.tolist() == [[0.0, 1.0]]
