"""The picture of a race: the target figure against steps, a panel per case, a line per run."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.plan import NO_OP
from experiments.results import Results, value_of

MOST_COLUMNS = 3
FEW_DECADES = 3
"""Up to which the axis has ticks between the powers of ten."""


def draw(results: Results, methods: Sequence[str], label: str, path: Path) -> bool:
    """Write the curves of every method at its best rate.

    Args:
        results: The runs.
        methods: In the order of the legend.
        label: What the target figure is.
        path: The PNG file to write.

    Returns:
        Whether there was a curve to draw.
    """
    cases = drawn_cases(results, methods)
    if not cases:
        return False
    columns = min(len(cases), MOST_COLUMNS)
    rows = -(-len(cases) // columns)
    # A figure of its own instead of pyplot: no display, no global state.
    figure = Figure(figsize=(5 * columns + 1, 3.5 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, case in zip(panels, cases, strict=False):
        draw_case(axes, results, methods, case)
        axes.set(title=case, xlabel="steps", ylabel=label)
        axes.grid(alpha=0.3)
    for axes in panels[len(cases) :]:
        axes.remove()
    found: dict[str, Artist] = {}
    for axes in panels[: len(cases)]:
        for line, name in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(name, line)
    figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=1 + columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    return True


def drawn_cases(results: Results, methods: Sequence[str]) -> list[str]:
    """Return the cases of which there are curves."""
    return [
        case
        for case in results.cases()
        if any(len(run.outcome.curve) > 1 for name in methods for run in results.of(name, case))
    ]


def draw_case(axes: Axes, results: Results, methods: Sequence[str], case: str) -> None:
    """Draw a case's curves, and as a dashed line where its first seed starts."""
    starts = {r.key.seed: value_of(r, results.target) for r in results.of(NO_OP, case)}
    for number, name in enumerate(methods):
        for index, run in enumerate(results.of(name, case)):
            if len(run.outcome.curve) > 1:
                points = list(run.outcome.curve)
                if run.key.seed in starts:
                    points.insert(0, (0, starts[run.key.seed]))
                steps, values = zip(*points, strict=True)
                legend = name if index == 0 else None
                axes.plot(steps, values, color=f"C{number % 10}", alpha=0.7, label=legend)
    for start in starts.values():
        axes.axhline(start, color="gray", linestyle="--", label=NO_OP)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if math.log10(high / low) < FEW_DECADES:
        axes.yaxis.set_major_locator(
            LogLocator(subs=(1, 2, 3, 5, 7) if high < 10 * low else (1, 2, 5))
        )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
