"""Figures over few runs: interquartile mean, bootstrap intervals, probability of improvement.

Shape legend: `r` runs of one task, `B` resamples; a run's score may be a curve of several points.
Source: Agarwal et al. 2021 (arXiv 2108.13264), sections 4.2 and 4.3. The authors' rliable has
the same and more, but needs scipy, arch and seaborn for it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from psgd_optim.types import InputError

Scores = NDArray[np.floating[Any]]

RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 0
"""Of the resampling: the same scores have the same interval."""


class Estimate(NamedTuple):
    """A figure with its interval, each of the shape of one score.

    Attributes:
        value: The figure.
        low: Lower end of the interval.
        high: Upper end; both ends are the figure itself where every task has one run.
    """

    value: Scores
    low: Scores
    high: Scores


def interquartile_mean(scores: Scores) -> Scores:
    """Return the mean of the middle half of the runs.

    A quarter of the runs is left out at each end, rounded down to whole runs, as published
    figures have it: 1 and 1 of 4 to 7 runs, none of 3.

    Args:
        scores: (..., r).

    Returns:
        (...).
    """
    count = scores.shape[-1]
    cut = count // 4
    middle: Scores = np.sort(scores, axis=-1)[..., cut : count - cut].mean(axis=-1)
    return middle


def estimate_iqm(tasks: Sequence[Scores], *, resamples: int = RESAMPLES) -> Estimate:
    """Estimate the interquartile mean over the runs of all tasks.

    Args:
        tasks: Per task (r, *points), scores that can be compared over tasks.
        resamples: `B`.

    Returns:
        (*points), with the interval of the stratified bootstrap: runs are resampled within tasks.
    """

    def pooled(parts: Sequence[Scores]) -> Scores:
        return interquartile_mean(np.concatenate(parts, axis=-1))

    # Runs last, so that resamples and points lead.
    return bootstrap([np.moveaxis(scores, 0, -1) for scores in tasks], pooled, resamples=resamples)


def estimate_improvement(
    tasks: Sequence[Scores], baseline: Sequence[Scores], *, resamples: int = RESAMPLES
) -> Estimate:
    """Estimate the probability that a run is better than one of the baseline.

    Invariant: swapping the two gives one minus the figure.

    Args:
        tasks: Per task (r,).
        baseline: Per task, in the same order, (r',).
        resamples: `B`.

    Returns:
        The mean over tasks of the part of all pairs that are won, ties counting half; its
        interval resamples both sides.

    Raises:
        InputError: If a side lacks a task or runs.
    """

    def won(parts: Sequence[Scores]) -> Scores:
        pairs = zip(parts[: len(tasks)], parts[len(tasks) :], strict=True)
        signs = [np.sign(ours[..., :, None] - theirs[..., None, :]) for ours, theirs in pairs]
        means = [(1 + sign.mean(axis=(-2, -1))) / 2 for sign in signs]
        mean: Scores = np.mean(means, axis=0)
        return mean

    if len(tasks) != len(baseline):
        raise InputError(f"Got {len(tasks)} tasks and {len(baseline)} of the baseline; give both.")
    return bootstrap([*tasks, *baseline], won, resamples=resamples)


def bootstrap(
    strata: Sequence[Scores],
    statistic: Callable[[Sequence[Scores]], Scores],
    *,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Return a statistic with its percentile interval.

    Args:
        strata: (*points, r) each; resampled along the last axis, on their own.
        statistic: Takes them with leading axes, and returns those axes.
        resamples: `B`.

    Returns:
        The statistic, (*points).

    Raises:
        InputError: If a stratum is empty, or there is none.
    """
    if not strata or any(scores.shape[-1] == 0 for scores in strata):
        raise InputError("Got no runs; give one or more of every task.")
    generator = np.random.default_rng(SEED)
    drawn = []
    for scores in strata:
        count = scores.shape[-1]
        chosen = generator.integers(count, size=(resamples, count))  # (B, r)
        drawn.append(np.moveaxis(scores[..., chosen], -2, 0))  # (B, *points, r)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(statistic(drawn), [tail, 1 - tail], axis=0)
    return Estimate(statistic(strata), low, high)
