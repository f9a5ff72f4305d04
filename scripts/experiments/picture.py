"""The picture of a race: the target figure against steps, a panel per case, a line per run."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.figure import Figure

from experiments.results import Results

MOST_COLUMNS = 3


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
    cases = [
        case
        for case in results.cases()
        if any(len(run.outcome.curve) > 1 for name in methods for run in results.of(name, case))
    ]
    if not cases:
        return False
    columns = min(len(cases), MOST_COLUMNS)
    rows = -(-len(cases) // columns)
    # A figure of its own instead of pyplot: no display, no global state.
    figure = Figure(figsize=(5 * columns + 1, 3.5 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, case in zip(panels, cases, strict=False):
        for number, name in enumerate(methods):
            for index, run in enumerate(results.of(name, case)):
                if len(run.outcome.curve) > 1:
                    steps, values = zip(*run.outcome.curve, strict=True)
                    legend = name if index == 0 else None
                    axes.plot(steps, values, color=f"C{number % 10}", alpha=0.7, label=legend)
        axes.set(title=case, xlabel="steps", ylabel=label, yscale="log")
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
