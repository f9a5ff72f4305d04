"""The pictures of a comparison: returns along the training, and how soon and how often reached."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from psgd_rl.rows import Row
from psgd_rl.statistics import Estimate, Scores, bootstrap, estimate_iqm

LEVELS = 100
"""Returns at which efficiency and profile are drawn."""


def draw_curves(rows: Sequence[Row], path: Path) -> None:
    """Write the interquartile mean of the evaluations, against steps and against seconds.

    Args:
        rows: The best of every optimizer, in the order of the legend; each has a finished run.
        path: The PNG file to write.
    """
    figure, by_step, by_time = _two_panels()
    for number, row in enumerate(rows):
        estimate = estimate_iqm([row.returns])
        _draw(by_step, row.steps, estimate, number, row.label)
        _draw(by_time, row.seconds, estimate, number, row.label)
    by_step.set_ylabel("return, IQM and 95 % interval")
    by_step.set_xlabel("environment steps")
    by_step.xaxis.set_major_formatter(EngFormatter(sep=""))
    by_time.set_xlabel("seconds")
    _save(figure, by_step, path)


def draw_efficiency(rows: Sequence[Row], path: Path) -> None:
    """Write the steps to a return, and the part of the runs that end above it.

    Args:
        rows: The best of every optimizer, in the order of the legend; each has a finished run.
        path: The PNG file to write.
    """
    figure, sooner, profile = _two_panels()
    every = np.concatenate([row.returns.ravel() for row in rows] or [np.zeros(1)])
    levels = np.linspace(every.min(), every.max(), LEVELS)
    for number, row in enumerate(rows):
        median = np.median(steps_to(levels, row), axis=0)
        is_reached = np.isfinite(median)
        sooner.plot(levels[is_reached], median[is_reached], color=_color(number), label=row.label)
        _draw(profile, levels, estimate_profile(levels, row), number, row.label)
    for axes in (sooner, profile):
        axes.set_xlabel("return")
    sooner.set_ylabel("steps until half of the runs evaluate to it")
    sooner.yaxis.set_major_formatter(EngFormatter(sep=""))
    profile.set_ylabel("part of the runs that end above it")
    _save(figure, sooner, path)


def steps_to(levels: Scores, row: Row) -> Scores:
    """Return the steps after which runs first evaluated to a level or above.

    Args:
        levels: (k,).
        row: With r runs.

    Returns:
        (r, k); infinite where a run never did.
    """
    is_above = row.returns[:, :, None] >= levels  # (r, p, k)
    first = row.steps[is_above.argmax(axis=1)]
    steps: Scores = np.where(is_above.any(axis=1), first, np.inf)
    return steps


def estimate_profile(levels: Scores, row: Row) -> Estimate:
    """Return the part of the runs whose final return is above each level, (k,)."""
    above = (row.final > levels[:, None]).astype(float)  # (k, r)
    return bootstrap([above], lambda parts: parts[0].mean(axis=-1))


def _two_panels() -> tuple[Figure, Axes, Axes]:
    # A figure of its own instead of pyplot: no display, no global state.
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure, left, right


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    # Outside the axes, where it can hide no curve.
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=130)


def _draw(axes: Axes, x: Scores, estimate: Estimate, number: int, label: str) -> None:
    color = _color(number)
    axes.plot(x, estimate.value, color=color, label=label, linewidth=2)
    axes.fill_between(x, estimate.low, estimate.high, color=color, alpha=0.2, linewidth=0)


def _color(number: int) -> str:
    return f"C{number % 10}"
