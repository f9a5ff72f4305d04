"""Closed forms for a few runs, and how often an interval holds the truth."""

import itertools

import numpy as np
import pytest

from psgd_optim.types import InputError
from psgd_rl.statistics import estimate_improvement, estimate_iqm, interquartile_mean


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 100.0, 2.0], 103 / 3),
        ([100.0, 1.0, 3.0, -50.0], 2.0),
        ([100.0, 1.0, 3.0, -50.0, 2.0], 2.0),
        ([8.0, 7.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 4.5),
        ([10.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 99.0], 10 / 6),
    ],
)
def test_interquartile_mean_of_a_few_runs(scores, expected):
    assert interquartile_mean(np.array(scores)) == pytest.approx(expected)
    estimate = estimate_iqm([np.array(scores)])
    assert estimate.value == pytest.approx(expected)
    assert min(scores) <= estimate.low <= estimate.value <= estimate.high <= max(scores)


def test_runs_of_several_tasks_are_pooled():
    tasks = [np.array([1.0, 2.0, 3.0]), np.array([10.0]), np.array([4.0, 5.0, 6.0, 90.0])]
    assert estimate_iqm(tasks).value == pytest.approx((3 + 4 + 5 + 6) / 4)


def test_resampling_stays_within_tasks():
    """Whatever is drawn, two of the four values are 0 and two are 1: the middle half is known."""
    tasks = [np.zeros(2), np.ones(2)]
    assert estimate_iqm(tasks) == (0.5, 0.5, 0.5)
    low, high = estimate_iqm([np.concatenate(tasks)])[1:]
    assert (low, high) == (0.0, 1.0)


def test_curve_has_the_interval_of_each_of_its_points():
    curve = np.random.default_rng(3).normal(size=(7, 4))
    together = estimate_iqm([curve])
    for i in range(4):
        alone = estimate_iqm([curve[:, i]])
        assert [part[i] for part in together] == pytest.approx(list(alone))


def test_bootstrap_of_two_runs_is_the_enumeration_of_all_draws():
    """With two runs, a quarter of the draws is the lower one alone: more than the tail."""
    assert estimate_iqm([np.array([1.0, 3.0])]) == (2.0, 1.0, 3.0)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([2.0], [1.0], 1.0),
        ([1.0], [1.0], 0.5),
        ([1.0, 2.0, 3.0], [2.0, 2.0], 0.5),
        ([5.0, 1.0], [0.0, 1.0, 2.0], (3 + 1.5) / 6),
    ],
)
def test_probability_of_improvement_counts_pairs(ours, theirs, expected):
    x, y = np.array(ours), np.array(theirs)
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(ours, theirs)]
    assert np.mean(pairs) == pytest.approx(expected)
    assert estimate_improvement([x], [y]).value == pytest.approx(expected)
    assert estimate_improvement([y], [x]).value == pytest.approx(1 - expected)


def test_probability_of_improvement_is_the_mean_over_tasks():
    won, lost = [np.array([2.0]), np.array([0.0, 0.5])], [np.array([1.0]), np.array([1.0])]
    assert estimate_improvement(won, lost) == (0.5, 0.5, 0.5)


def test_nearly_every_interval_holds_the_truth():
    """Of 300 samples of 40 runs; the bootstrap's intervals are a little short of 95 %."""
    samples = np.random.default_rng(0).normal(5.0, 2.0, (300, 40))
    others = np.random.default_rng(1).normal(5.0, 2.0, (300, 40))
    held = won = 0
    for sample, other in zip(samples, others, strict=True):
        _, low, high = estimate_iqm([sample], resamples=400)
        held += low <= 5.0 <= high
        _, low, high = estimate_improvement([sample], [other], resamples=200)
        won += low <= 0.5 <= high
    assert 0.90 < held / 300 < 0.98
    assert 0.90 < won / 300 < 0.98


def test_same_scores_have_the_same_interval():
    scores = np.random.default_rng(5).normal(size=9)
    assert estimate_iqm([scores]) == estimate_iqm([scores])


def test_nothing_cannot_be_estimated():
    with pytest.raises(InputError, match="Got no runs"):
        estimate_iqm([])
    with pytest.raises(InputError, match="Got no runs"):
        estimate_iqm([np.ones(3), np.ones(0)])
    with pytest.raises(InputError, match="1 tasks and 2 of the baseline"):
        estimate_improvement([np.ones(3)], [np.ones(2), np.ones(2)])
