"""The picture of a comparison: validation loss against steps and against seconds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


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
    """In bits per byte, as are the next two."""
    lowest: Sequence[float]
    highest: Sequence[float]


def draw_curves(curves: Sequence[Curve], floor: float, path: Path) -> None:
    """Write the picture.

    Args:
        curves: The lines, in the order of the legend.
        floor: What zlib makes of the text, in bits per byte.
        path: The PNG file to write.
    """
    # A figure of its own instead of pyplot: no display, no global state.
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    by_step, by_time = figure.subplots(1, 2, sharey=True)
    for curve in curves:
        _draw(by_step, curve.steps, curve)
        _draw(by_time, curve.seconds, curve)
    for axes in (by_step, by_time):
        axes.axhline(floor, color="grey", linestyle=":", label="zlib -9")
        axes.grid(alpha=0.3)
    by_step.set_xlabel("steps")
    by_time.set_xlabel("seconds of training")
    by_step.set_ylabel("validation loss (bits per byte)")
    by_step.xaxis.set_major_locator(MaxNLocator(integer=True))
    # Outside the axes, where it can hide no curve.
    figure.legend(*by_step.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    figure.savefig(path, dpi=120)


def _draw(axes: Axes, x: Sequence[float], curve: Curve) -> None:
    # The untrained model's loss would take up most of the height.
    shown = slice(1 if len(x) > 2 else 0, None)
    (line,) = axes.plot(x[shown], curve.mean[shown], label=curve.label, marker=".")
    axes.fill_between(
        x[shown],
        curve.lowest[shown],
        curve.highest[shown],
        color=line.get_color(),
        alpha=0.2,
        linewidth=0,
    )
