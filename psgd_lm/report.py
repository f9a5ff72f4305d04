"""A comparison as Markdown: the best of each optimizer, how soon it was there, and the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from psgd_lm.rows import Mean, Row, best_rows, with_target
from psgd_optim.tools.grid import edge_of_grid

NONE = "-"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What the runs of a comparison are held against."""

    loss: float
    """The target, validation loss in nats per token."""
    about: str
    """Where it comes from."""
    baseline: Row | None
    """100 % of steps, tokens and seconds; None for no percentages."""
    is_own: bool
    """Whether the target is the baseline's own final loss; then its whole run is the 100 %."""


def find_goal(rows: Sequence[Row], baseline: str, target: float | None) -> Goal | None:
    """Choose the target.

    Args:
        rows: All of a comparison.
        baseline: Label of an optimizer, which need not be among them.
        target: A loss; None takes the baseline's final one.

    Returns:
        The goal; None without a target and a baseline that finished.
    """
    found = [row for row in best_rows(rows) if row.optimizer == baseline and row.finished]
    own = found[0] if found else None
    if target is not None:
        return Goal(loss=target, about="as given", baseline=own, is_own=False)
    if own is None:
        return None
    about = f"the final loss of {own.label}"
    return Goal(loss=own.val_loss.value, about=about, baseline=own, is_own=True)


def comparison_table(
    rows: Sequence[Row], goal: Goal | None, floor: float, *, workers: int = 1
) -> str:
    """Lay a comparison out as Markdown.

    Args:
        rows: All.
        goal: What to hold them against.
        floor: What zlib makes of the validation text, in bits per byte.
        workers: Runs that went on at a time.

    Returns:
        The table with the best row of every optimizer, and below it what it means.
    """
    best = [with_target(row, goal.loss) if goal else row for row in best_rows(rows)]
    has_test = any(row.test_loss for row in best)
    heads = ["optimizer", "lr", "wd", "seeds", "val loss (nats/token)"]
    heads += ["test loss"] * has_test + ["bits/byte", "perplexity"]
    heads += ["steps to target", "tokens to target", "seconds to target"] if goal else []
    heads += ["steps", "seconds", "ms/step", "parameters"]
    lines = [
        f"| {' | '.join(heads)} |",
        "|---" + "|---:" * (len(heads) - 1) + "|",
        *(f"| {' | '.join(_cells(row, goal, has_test))} |" for row in best),
        "",
        f"zlib -9 takes {floor:.4f} bits/byte for the same text.",
        *_about(goal, has_test),
        *_tried(rows),
    ]
    if workers > 1:
        lines.append(
            f"{workers} runs at a time shared the machine: seconds and ms/step are rough, also "
            "against each other."
        )
    return "\n".join(lines)


def _cells(row: Row, goal: Goal | None, has_test: bool) -> list[str]:
    cells = [row.optimizer, f"{row.lr:g}"]
    cells.append(NONE if row.weight_decay is None else f"{row.weight_decay:g}")
    bad = [f"{count} {what}" for count, what in _bad(row) if count]
    cells.append(" + ".join([f"{row.finished}"] * (row.finished > 0) + bad))
    if not row.finished:
        return cells + [NONE] * (7 + has_test + 3 * (goal is not None))
    cells.append(_mean(row.val_loss, 4))
    if has_test:
        cells.append(_mean(row.test_loss, 4) if row.test_loss else NONE)
    cells += [f"{row.bits_per_byte:.4f}", f"{row.perplexity:.3f}"]
    cells += _sooner(row, goal) if goal else []
    cells += [f"{row.steps:.0f}", f"{row.training_seconds:.1f}"]
    return [*cells, f"{row.ms_per_step:.1f}", f"{row.parameters:,}"]


def _bad(row: Row) -> list[tuple[int, str]]:
    return [(row.diverged, "diverged"), (row.failed, "failed")]


def _mean(mean: Mean, digits: int) -> str:
    error = "" if mean.error is None else f" +- {mean.error:,.{digits}f}"
    return f"{mean.value:,.{digits}f}{error}"


def _sooner(row: Row, goal: Goal) -> list[str]:
    """Return steps, tokens and seconds to the target."""
    is_baseline = goal.baseline is not None and row.label == goal.baseline.label
    if is_baseline and goal.is_own:
        whole = ((row.steps, 0), (row.tokens, 0), (row.training_seconds, 1))
        return [f"{value:,.{digits}f} (100 %)" for value, digits in whole]
    if row.reached is None:
        return ["not reached"] * 3
    some = "" if row.reached.count == row.finished else f" ({row.reached.count} of {row.finished})"
    parts = (row.reached.steps, 0), (row.reached.tokens, 0), (row.reached.seconds, 1)
    return [
        _mean(mean, digits) + (f" ({100 * mean.value / whole:.0f} %)" if whole else "") + some
        for (mean, digits), whole in zip(parts, _whole(goal), strict=True)
    ]


def _whole(goal: Goal) -> tuple[float, float, float]:
    """Return the 100 % of steps, tokens and seconds; 0 where there is none."""
    if goal.baseline is None:
        return 0.0, 0.0, 0.0
    if goal.is_own:
        return goal.baseline.steps, goal.baseline.tokens, goal.baseline.training_seconds
    reached = with_target(goal.baseline, goal.loss).reached
    if reached is None:
        return 0.0, 0.0, 0.0
    return reached.steps.value, reached.tokens.value, reached.seconds.value


def _about(goal: Goal | None, has_test: bool) -> list[str]:
    lines = []
    if goal:
        lines.append(
            f"Target: {goal.loss:.4f} nats/token, {goal.about}; reached at the first evaluation "
            "at or below it. Seconds are of training steps alone."
        )
    if goal and goal.baseline:
        whole = "whole run" if goal.is_own else "way to the target"
        lines.append(f"100 % is the {whole} of {goal.baseline.label}.")
    if has_test:
        lines.append("Test losses are of the checkpoints with the lowest validation loss.")
    return lines


def _tried(rows: Sequence[Row]) -> list[str]:
    """Say what the grid came to, and where its best is at an edge."""
    lines = []
    for optimizer, group in groupby(sorted(rows, key=_settings), key=lambda row: row.optimizer):
        tried = list(group)
        if len(tried) == 1:
            continue
        edge = edge_of_grid([row.lr for row in tried], best_rows(tried)[0].lr)
        figures = ", ".join(
            f"{row.label.removeprefix(f'{optimizer}, ')} "
            + (f"{row.val_loss.value:.4f}" if row.finished else "none")
            for row in tried
        )
        lines.append(f"Tried with {optimizer}, final validation loss: {figures}.{edge}")
    return lines


def _settings(row: Row) -> tuple[str, float, float]:
    return row.optimizer, row.weight_decay or 0.0, row.lr
