"""The figures of a comparison: means over seeds, the Markdown table, and who was sooner."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import mean, stdev
from typing import Any

from psgd_lm.picture import Curve


@dataclass(frozen=True, kw_only=True)
class Member:
    """One run of a comparison, as it was written to its folder."""

    name: str
    optimizer: str
    lr: float
    summary: Mapping[str, Any]
    evaluations: Sequence[Mapping[str, Any]]
    """The records of `metrics.jsonl` that hold an evaluation."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The runs with the same optimizer and learning rate, means over the seeds that finished."""

    optimizer: str
    lr: float
    finished: int
    diverged: int
    val_loss: float
    """In nats per token; infinite if no run finished."""
    standard_error: float | None
    """Of `val_loss` over the seeds; None with fewer than two."""
    bits_per_byte: float
    perplexity: float
    seconds: float
    ms_per_step: float
    parameters: int
    curve: Curve | None
    """None if no run finished."""

    @property
    def label(self) -> str:
        """Optimizer and learning rate, for people."""
        return f"{self.optimizer}, lr {self.lr:g}"

    def figures(self) -> dict[str, Any]:
        """Return the row as JSON values; a figure that does not exist is None."""
        values = {key: value for key, value in vars(self).items() if key != "curve"}
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }


def make_rows(done: Sequence[Member]) -> list[Row]:
    """Group runs by optimizer and learning rate.

    Args:
        done: Runs that finished or diverged.

    Returns:
        The rows, lowest validation loss first.
    """

    def settings(member: Member) -> tuple[str, float]:
        return member.optimizer, member.lr

    groups = groupby(sorted(done, key=settings), key=settings)
    rows = [_make_row(optimizer, lr, list(group)) for (optimizer, lr), group in groups]
    return sorted(rows, key=lambda row: row.val_loss)


def _make_row(optimizer: str, lr: float, group: Sequence[Member]) -> Row:
    finished = [member for member in group if member.summary["status"] == "finished"]

    def average(key: str) -> float:
        return mean(member.summary[key] for member in finished) if finished else math.inf

    losses = [member.summary["val_loss"] for member in finished]
    return Row(
        optimizer=optimizer,
        lr=lr,
        finished=len(finished),
        diverged=len(group) - len(finished),
        val_loss=average("val_loss"),
        standard_error=stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else None,
        bits_per_byte=average("bits_per_byte"),
        perplexity=average("perplexity"),
        seconds=average("seconds"),
        ms_per_step=average("ms_per_step"),
        parameters=group[0].summary["parameters"],
        curve=_make_curve(f"{optimizer}, lr {lr:g}", finished) if finished else None,
    )


def _make_curve(label: str, group: Sequence[Member]) -> Curve:
    # One budget for all: every run has the same evaluations.
    at = list(zip(*(member.evaluations for member in group), strict=True))
    bits = [[record["validation/bits_per_byte"] for record in records] for records in at]
    return Curve(
        label=label,
        steps=[records[0]["step"] for records in at],
        seconds=[mean(record["time/training"] for record in records) for records in at],
        mean=[mean(values) for values in bits],
        lowest=[min(values) for values in bits],
        highest=[max(values) for values in bits],
    )


def comparison_table(rows: Sequence[Row], floor: float) -> str:
    """Lay rows out as Markdown.

    Args:
        rows: Best first.
        floor: What zlib makes of the validation text, in bits per byte.

    Returns:
        The table, and below it what it means.
    """
    lines = [
        "| optimizer | lr | seeds | val loss (nats/token) | bits/byte | perplexity | seconds "
        "| ms/step | parameters |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        *(_table_line(row) for row in rows),
        "",
        f"zlib -9 takes {floor:.4f} bits/byte for the same text.",
    ]
    return "\n".join([*lines, *_who_was_sooner(rows)])


def _table_line(row: Row) -> str:
    if not row.finished:
        return f"| {row.optimizer} | {row.lr:g} | {row.diverged} diverged | - | - | - | - | - | - |"
    seeds = f"{row.finished}" + (f" + {row.diverged} diverged" if row.diverged else "")
    spread = "" if row.standard_error is None else f" +- {row.standard_error:.4f}"
    return (
        f"| {row.optimizer} | {row.lr:g} | {seeds} | {row.val_loss:.4f}{spread} "
        f"| {row.bits_per_byte:.4f} | {row.perplexity:.3f} | {row.seconds:.1f} "
        f"| {row.ms_per_step:.1f} | {row.parameters:,} |"
    )


def _who_was_sooner(rows: Sequence[Row]) -> list[str]:
    """Say when the best row passed the best row of every other optimizer."""
    curves = {row.optimizer: row.curve for row in reversed(rows) if row.curve is not None}
    if not curves:
        return []
    winner = next(row.curve for row in rows if row.curve is not None)
    lines = []
    for curve in curves.values():
        if curve.label == winner.label:
            continue
        at = next(i for i, loss in enumerate(winner.mean) if loss <= curve.mean[-1])
        lines.append(
            f"{winner.label} reaches the final loss of {curve.label} by step {winner.steps[at]} of "
            f"{curve.steps[-1]}, in {winner.seconds[at]:.1f} s of training instead of "
            f"{curve.seconds[-1]:.1f} s."
        )
    return lines
