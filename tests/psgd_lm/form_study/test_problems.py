"""The problems of the measurement: fixed by a seed, and possible for every candidate."""

import math

import pytest
import torch

from psgd_lm.form_study import memory, sparse, text
from psgd_lm.form_study.study import PROBLEMS
from psgd_lm.form_study.trial import train, unchanged

ALL = [(name, c) for name, problem in PROBLEMS.items() for c in problem.candidates]


@pytest.mark.parametrize("name", PROBLEMS)
def test_candidates_have_names_of_their_own_and_adamw_is_first(name):
    names = [c.name for c in PROBLEMS[name].candidates]
    assert names[0] == "AdamW"
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", PROBLEMS)
def test_seed_decides_model_and_batches(name):
    start = PROBLEMS[name].start
    one, same, other = start(3, unchanged), start(3, unchanged), start(4, unchanged)
    assert torch.equal(one.loss(5), same.loss(5))
    assert not torch.equal(one.loss(5), other.loss(5))
    assert not torch.equal(one.loss(5), one.loss(6))
    assert one.evaluate() == same.evaluate()


@pytest.mark.parametrize(("name", "candidate"), ALL, ids=[f"{n}-{c.name}" for n, c in ALL])
def test_every_candidate_starts_from_the_same_model_and_takes_steps(name, candidate):
    start = PROBLEMS[name].start
    trial = start(0, candidate.prepare)
    # Affine twins add their numbers in another order.
    assert trial.evaluate() == pytest.approx(start(0, unchanged).evaluate(), rel=1e-5)
    before = trial.evaluate()
    lr = (candidate.lrs or PROBLEMS[name].lrs)[0]
    after = train(trial, candidate.build(trial.model, lr, 1.0), 2)
    assert math.isfinite(after)
    assert after != before


def test_addition_asks_for_the_mean_of_two_marked_numbers():
    x, y = memory.sequences(50, seed=1)
    assert x.shape == (memory.LENGTH, 50, 2)
    marks = x[..., 1]
    assert torch.equal(marks.sum(dim=0), torch.full((50,), 2.0))
    assert not marks[memory.LENGTH // 2 :].any()
    torch.testing.assert_close((x[..., 0] * marks).sum(dim=0) / 2, y)


def test_bags_are_mostly_of_frequent_tokens_and_their_classes_are_told_by_them():
    tokens, classes = sparse.bags(200, seed=1)
    assert tokens.shape == (200, sparse.BAG)
    assert tokens.max() < sparse.TOKENS
    # The harmonic numbers of 100 and 20 000 are 5.19 and 10.48.
    assert (tokens < 100).float().mean() == pytest.approx(5.19 / 10.48, abs=0.05)
    assert classes.unique().numel() == sparse.CLASSES


def test_sparse_candidates_have_sparse_gradients():
    trial = sparse.start(0, sparse.sparse_gradients)
    trial.loss(0).backward()
    assert trial.model.get_parameter("embedding.weight").grad.is_sparse


def test_gpt_has_the_size_that_its_problem_tells():
    model = text.start(0, unchanged).model
    assert round(sum(p.numel() for p in model.parameters()) / 1000) == 109
