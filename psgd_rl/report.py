"""A comparison as Markdown: the best of each optimizer, what it means, and what else was tried."""

import math
from collections.abc import Sequence

import numpy as np

from psgd_optim.tools.grid import edge_of_grid
from psgd_rl.rows import Row, best_rows
from psgd_rl.statistics import Estimate, estimate_iqm

NONE = "-"


def comparison_table(rows: Sequence[Row], baseline: Row | None, *, workers: int = 1) -> str:
    """Lay a comparison out as Markdown.

    Args:
        rows: All.
        baseline: What the others are held against.
        workers: Runs that went on at a time.

    Returns:
        The table with the best row of every optimizer, and below it what it means.
    """
    digits = _digits(rows)
    heads = ["optimizer", "lr", "seeds", "final return, IQM", "mean +- std", "best, IQM"]
    heads += [f"P(> {baseline.optimizer})"] if baseline else []
    heads += ["steps/s", "seconds"]
    lines = [
        f"| {' | '.join(heads)} |",
        "|---" + "|---:" * (len(heads) - 1) + "|",
        *(f"| {' | '.join(_cells(row, baseline, digits))} |" for row in best_rows(rows)),
        "",
        "Final returns are of the deterministic evaluation after the last step. IQM is the mean of "
        "the middle half of the seeds, in brackets its 95 % interval (stratified bootstrap); std "
        "is over the seeds. Best is of each run's best evaluation, which is chosen by the return "
        "itself.",
    ]
    if baseline:
        lines.append(
            f"P(> {baseline.optimizer}) is the part of all pairs of seeds in which the run ends "
            f"better than one of {baseline.label}, ties counting half."
        )
    lines += _tried(rows, digits)
    if workers > 1:
        lines.append(
            f"{workers} runs at a time shared the machine: seconds and steps/s are rough, also "
            "against each other."
        )
    return "\n".join(lines)


def _cells(row: Row, baseline: Row | None, digits: int) -> list[str]:
    count = len(row.runs)
    parts = [f"{count}"] * (count > 0) + [f"{row.failed} failed"] * (row.failed > 0)
    cells = [row.optimizer, f"{row.lr:g}", " + ".join(parts)]
    if not row.runs:
        return cells + [NONE] * (5 + (baseline is not None))
    spread = f" +- {np.std(row.final, ddof=1):.{digits}f}" if count > 1 else ""
    cells += [_estimate(row.iqm, digits, count), f"{row.final.mean():.{digits}f}{spread}"]
    cells.append(_estimate(estimate_iqm([row.best]), digits, count))
    if baseline is row:
        cells.append(NONE)
    elif baseline is not None:
        cells.append(_estimate(row.improvement(baseline), 2, min(count, len(baseline.runs))))
    return [*cells, f"{row.average('steps_per_second'):.0f}", f"{row.average('seconds'):.1f}"]


def _digits(rows: Sequence[Row]) -> int:
    """Return the decimals that give the largest return three digits."""
    largest = max((np.abs(row.final).max() for row in rows if row.runs), default=0.0)
    return max(2 - math.floor(math.log10(largest)), 0) if largest > 0 else 0


def _estimate(estimate: Estimate, digits: int, count: int) -> str:
    """Return a figure with its interval, which a single run has none of."""
    value, low, high = (f"{float(end):.{digits}f}" for end in estimate)
    return f"{value} [{low}, {high}]" if count > 1 else value


def _tried(rows: Sequence[Row], digits: int) -> list[str]:
    """Say what the learning rates came to, and where the best is at an edge."""
    lines = []
    for best in best_rows(rows):
        tried = sorted(
            (row for row in rows if row.optimizer == best.optimizer), key=lambda row: row.lr
        )
        if len(tried) == 1:
            continue
        figures = ", ".join(
            f"lr {row.lr:g} " + (f"{float(row.iqm.value):.{digits}f}" if row.runs else "none")
            for row in tried
        )
        lines.append(
            f"Tried with {best.optimizer}, IQM of the final return: {figures}; chosen on the same "
            f"seeds.{edge_of_grid([row.lr for row in tried], best.lr)}"
        )
    return lines
