"""Evaluate a trained agent over fixed episodes, with mean actions and frozen statistics."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _cli import parse_run, run

from psgd_rl import evaluate_run


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Evaluate a run's checkpoint; RUN is the run's folder, or a checkpoint file."""

    episodes: int | None = None
    """Episodes; by default as many as the run took, which gives its own number again."""
    best: bool = False
    """Take the checkpoint with the best evaluation instead of the last one."""


def main(args: Sequence[str]) -> None:
    """Evaluate, and print the return."""
    run_dir, flags = parse_run(Flags(), args, prog="evaluate_rl.py")
    evaluation = evaluate_run(Path(run_dir), flags.episodes, best=flags.best)
    print(f"return {evaluation.return_mean} +- {evaluation.return_std}")
    print(f"over {len(evaluation.returns)} episodes of {evaluation.lengths.mean():.0f} steps")


if __name__ == "__main__":
    raise SystemExit(run(main))
