"""The picture of a comparison: validation loss against steps and against seconds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

HEADROOM = 0.6
"""How much higher than the worst best run ends the picture reaches, in nats per token."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of the picture: the same settings under one or more seeds.

    All sequences but the label have one entry per evaluation.
    """

    label: str
    steps: Sequence[int]
    seconds: Sequence[float]
    """Time in training steps alone, mean over the seeds."""
    mean: Sequence[float]
    """Validation loss in nats per token, as are the next two."""
    lowest: Sequence[float]
    highest: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Family:
    """The curves of one optimizer."""

    best: Curve
    others: Sequence[Curve] = ()


@dataclass(frozen=True, kw_only=True)
class Level:
    """A horizontal line."""

    label: str
    loss: float
    """In nats per token."""
    style: str = ":"


def draw_curves(families: Sequence[Family], levels: Sequence[Level], path: Path) -> None:
    """Write the picture: the best run of every optimizer bold, its others thin, of one colour.

    Args:
        families: In the order of the legend.
        levels: Lines to hold the curves against.
        path: The PNG file to write.
    """
    # A figure of its own instead of pyplot: no display, no global state.
    figure = Figure(figsize=(11, 5), layout="constrained")
    by_step, by_time = figure.subplots(1, 2, sharey=True)
    for number, family in enumerate(families):
        color = f"C{number % 10}"
        for curve in family.others:
            _draw(by_step, curve.steps, curve, color, is_best=False)
            _draw(by_time, curve.seconds, curve, color, is_best=False)
        _draw(by_step, family.best.steps, family.best, color, is_best=True)
        _draw(by_time, family.best.seconds, family.best, color, is_best=True)
    for axes in (by_step, by_time):
        for level in levels:
            axes.axhline(
                level.loss, color="black", linewidth=1, linestyle=level.style, label=level.label
            )
        axes.grid(alpha=0.3)
    _fit_height(by_step, families, levels)
    by_step.set_xlabel("steps")
    by_time.set_xlabel("seconds of training")
    by_step.set_ylabel("validation loss (nats per token)")
    by_step.xaxis.set_major_locator(MaxNLocator(integer=True))
    # Outside the axes, where it can hide no curve.
    figure.legend(*by_step.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=130)


def _fit_height(axes: Axes, families: Sequence[Family], levels: Sequence[Level]) -> None:
    """Show where the best runs end; their beginnings, and runs that fail, would flatten it."""
    ends = [family.best.mean[-1] for family in families]
    if not ends:
        return
    marks = [*ends, *(level.loss for level in levels)]
    bottom = min(marks)
    starts = [family.best.mean[min(1, len(family.best.mean) - 1)] for family in families]
    top = max(max(marks), min(max(starts), max(ends) + HEADROOM))
    margin = 0.04 * (top - bottom) + 1e-3
    axes.set_ylim(bottom - margin, top + margin)


def _draw(
    axes: Axes,
    x: Sequence[float],
    curve: Curve,
    color: str,
    *,
    is_best: bool,
) -> None:
    axes.plot(
        x,
        curve.mean,
        color=color,
        label=curve.label if is_best else None,
        linewidth=2.2 if is_best else 0.8,
        alpha=1.0 if is_best else 0.5,
        marker="." if is_best else None,
    )
    if is_best:
        axes.fill_between(x, curve.lowest, curve.highest, color=color, alpha=0.2, linewidth=0)
