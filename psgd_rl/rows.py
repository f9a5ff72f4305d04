"""The figures of a comparison: one row per optimizer and learning rate, over its seeds.

Shape legend: `r` runs that finished, `p` evaluations of each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np

from psgd_optim.tools.comparison import Member
from psgd_rl.statistics import Estimate, Scores, estimate_improvement, estimate_iqm

RETURN, SECONDS = "eval/return_mean", "seconds"
"""What an evaluation's record holds: the mean return, and the seconds since the run began."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The runs with the same settings."""

    optimizer: str
    lr: float
    runs: tuple[Member, ...]
    """Those that finished."""
    failed: int

    @property
    def label(self) -> str:
        """The settings, for people."""
        return f"{self.optimizer}, lr {self.lr:g}"

    @cached_property
    def final(self) -> Scores:
        """(r,), returns of the deterministic evaluation at the end."""
        final: Scores = np.array([run.summary["return_mean"] for run in self.runs])
        return final

    @cached_property
    def best(self) -> Scores:
        """(r,), returns of each run's best evaluation; looked for, so never below `final`."""
        best: Scores = self.returns.max(axis=1)
        return best

    @cached_property
    def returns(self) -> Scores:
        """(r, p), of every evaluation along the training."""
        return self._evaluated(RETURN)

    @property
    def steps(self) -> Scores:
        """(p,), environment steps before each evaluation: one budget for all runs."""
        steps: Scores = self._evaluated("step")[0]
        return steps

    @property
    def seconds(self) -> Scores:
        """(p,), seconds of the whole run before each evaluation, mean over the runs."""
        seconds: Scores = self._evaluated(SECONDS).mean(axis=0)
        return seconds

    @cached_property
    def iqm(self) -> Estimate:
        """Interquartile mean of the final returns."""
        return estimate_iqm([self.final])

    @property
    def rank(self) -> tuple[bool, float]:
        """Sorts rows: one that a seed is missing from comes after all that are whole."""
        return self.failed > 0, -float(self.iqm.value) if self.runs else math.inf

    def improvement(self, baseline: "Row") -> Estimate:
        """Return the probability that a run ends better than one of the baseline."""
        return estimate_improvement([self.final], [baseline.final])

    def average(self, key: str) -> float:
        """Return the mean of a figure of the summaries."""
        return float(np.mean([run.summary[key] for run in self.runs]))

    def figures(self, baseline: "Row | None") -> dict[str, Any]:
        """Return the row as JSON values; without a finished run, the settings alone."""
        values: dict[str, Any] = {
            "optimizer": self.optimizer,
            "lr": self.lr,
            "finished": len(self.runs),
            "failed": self.failed,
        }
        if not self.runs:
            return values
        values |= {
            "final_returns": self.final.tolist(),
            "final_iqm": [float(end) for end in self.iqm],
            "best_returns": self.best.tolist(),
            "best_iqm": [float(end) for end in estimate_iqm([self.best])],
            "steps_per_second": self.average("steps_per_second"),
            "seconds": self.average("seconds"),
            "curve": {
                "steps": self.steps.tolist(),
                "seconds": self.seconds.tolist(),
                "returns": self.returns.tolist(),
            },
        }
        if baseline is not None and baseline is not self:
            ends = self.improvement(baseline)
            values["improvement_probability"] = [float(end) for end in ends]
        return values

    def _evaluated(self, key: str) -> Scores:
        """Return a figure of every evaluation, (r, p)."""
        return np.array([[e[key] for e in run.evaluations] for run in self.runs])


def make_rows(done: Sequence[Member]) -> list[Row]:
    """Group runs by their settings.

    Args:
        done: Runs that came to an end, good or bad.

    Returns:
        The rows, highest interquartile mean first.
    """

    def settings(member: Member) -> tuple[str, float]:
        return member.optimizer, member.lr

    rows = []
    for (optimizer, lr), group in groupby(sorted(done, key=settings), key=settings):
        runs = list(group)
        finished = tuple(run for run in runs if run.status == "finished")
        failed = len(runs) - len(finished)
        rows.append(Row(optimizer=optimizer, lr=lr, runs=finished, failed=failed))
    return sorted(rows, key=lambda row: row.rank)


def best_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the best row of every optimizer, highest interquartile mean first."""
    best: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row.rank):
        best.setdefault(row.optimizer, row)
    return list(best.values())


def find_baseline(rows: Sequence[Row], optimizer: str) -> Row | None:
    """Return the best row of an optimizer; `None` if none of its runs finished."""
    found = [row for row in best_rows(rows) if row.optimizer == optimizer and row.runs]
    return found[0] if found else None
