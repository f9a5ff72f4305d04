"""The figures of a comparison: means over seeds, and how soon a target was reached."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import mean, stdev
from typing import Any, NamedTuple

from psgd_lm.picture import Curve
from psgd_optim.tools.comparison import Member


class Mean(NamedTuple):
    """A mean over seeds.

    Attributes:
        value: The mean.
        error: Its standard error; None with fewer than two seeds.
    """

    value: float
    error: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Return the mean of one value or more."""
        error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return cls(mean(values), error)


@dataclass(frozen=True, kw_only=True)
class LMMember(Member):
    """One run of a comparison, as it was written to its folder."""

    weight_decay: float | None


@dataclass(frozen=True, kw_only=True)
class Reached:
    """When the runs of a row first evaluated to the target or below, means over those that did."""

    count: int
    """How many did; the means are over them."""
    steps: Mean
    tokens: Mean
    seconds: Mean
    """Of training steps alone."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The runs with the same settings, means over the seeds that finished."""

    optimizer: str
    lr: float
    weight_decay: float | None
    finished: int
    diverged: int
    failed: int
    val_loss: Mean
    """In nats per token, at the end; infinite if no run finished."""
    test_loss: Mean | None
    """Of the checkpoint with the lowest validation loss; None for a text without a test part."""
    bits_per_byte: float
    perplexity: float
    steps: float
    tokens: float
    training_seconds: float
    """Of training steps alone."""
    ms_per_step: float
    parameters: int
    runs: tuple[LMMember, ...]
    """Those that finished."""
    curve: Curve | None
    """None if no run finished."""
    reached: Reached | None = None
    """None if there is no target, or no run reached it."""

    @property
    def label(self) -> str:
        """The settings, for people."""
        decay = f", wd {self.weight_decay:g}" if self.weight_decay else ""
        return f"{self.optimizer}, lr {self.lr:g}{decay}"

    @property
    def rank(self) -> tuple[bool, float]:
        """Sorts rows: one that a seed is missing from comes after all that are whole."""
        return self.diverged + self.failed > 0, self.val_loss.value

    def figures(self) -> dict[str, Any]:
        """Return the row as JSON values; a figure that does not exist is None."""
        flat: dict[str, Any] = {}
        for key, value in vars(self).items():
            if isinstance(value, Mean):
                flat[key], flat[f"{key}_standard_error"] = value
            elif isinstance(value, Reached):
                flat[key] = {"count": value.count}
                for name in ("steps", "tokens", "seconds"):
                    part: Mean = getattr(value, name)
                    flat[key] |= {name: part.value, f"{name}_standard_error": part.error}
            elif key not in ("runs", "curve"):
                flat[key] = value
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in flat.items()
        }


def make_rows(done: Sequence[LMMember]) -> list[Row]:
    """Group runs by their settings.

    Args:
        done: Runs that came to an end, good or bad.

    Returns:
        The rows, lowest validation loss first.
    """

    def settings(member: LMMember) -> tuple[str, float, float]:
        return member.optimizer, member.lr, member.weight_decay or 0.0

    groups = groupby(sorted(done, key=settings), key=settings)
    return sorted((_make_row(list(group)) for _, group in groups), key=lambda row: row.rank)


def best_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the best row of every optimizer, lowest validation loss first."""
    best: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row.rank):
        best.setdefault(row.optimizer, row)
    return list(best.values())


def _make_row(group: Sequence[LMMember]) -> Row:
    first = group[0]
    finished = [member for member in group if member.status == "finished"]
    last = [member.evaluations[-1] for member in finished]

    def average(records: Sequence[Mapping[str, Any]], key: str) -> float:
        return mean(record[key] for record in records) if records else math.inf

    summaries = [member.summary for member in finished]
    tested = [summary["test_loss"] for summary in summaries if "test_loss" in summary]
    losses = [summary["val_loss"] for summary in summaries]
    row = Row(
        optimizer=first.optimizer,
        lr=first.lr,
        weight_decay=first.weight_decay,
        finished=len(finished),
        diverged=sum(member.status == "diverged" for member in group),
        failed=sum(member.status == "failed" for member in group),
        val_loss=Mean.of(losses) if losses else Mean(math.inf, None),
        test_loss=Mean.of(tested) if tested else None,
        bits_per_byte=average(summaries, "bits_per_byte"),
        perplexity=average(summaries, "perplexity"),
        steps=average(last, "step"),
        tokens=average(last, "train/tokens"),
        training_seconds=average(last, "time/training"),
        ms_per_step=average(summaries, "ms_per_step"),
        parameters=next((m.summary["parameters"] for m in group if m.summary), 0),
        runs=tuple(finished),
        curve=None,
    )
    return replace(row, curve=_make_curve(row.label, finished)) if finished else row


def _make_curve(label: str, group: Sequence[LMMember]) -> Curve:
    # One budget for all: every run has the same evaluations.
    at = list(zip(*(member.evaluations for member in group), strict=True))
    losses = [[record["validation/loss"] for record in records] for records in at]
    return Curve(
        label=label,
        steps=[records[0]["step"] for records in at],
        seconds=[mean(record["time/training"] for record in records) for records in at],
        mean=[mean(values) for values in losses],
        lowest=[min(values) for values in losses],
        highest=[max(values) for values in losses],
    )


def with_target(row: Row, target: float) -> Row:
    """Note when a row's runs reached a target.

    Args:
        row: Of any settings.
        target: Validation loss, nats per token.

    Returns:
        The row with `reached`.
    """
    firsts = [
        next((record for record in run.evaluations if record["validation/loss"] <= target), None)
        for run in row.runs
    ]
    hits = [record for record in firsts if record is not None]
    if not hits:
        return row

    def average(key: str) -> Mean:
        return Mean.of([record[key] for record in hits])

    reached = Reached(
        count=len(hits),
        steps=average("step"),
        tokens=average("train/tokens"),
        seconds=average("time/training"),
    )
    return replace(row, reached=reached)
