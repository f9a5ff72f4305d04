"""Evaluate a trained agent: `evaluate_rl.py RUN [--episodes N]`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from _cli import parse_flags, run
from psgd_rl import evaluate_run


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to evaluate."""

    run: Annotated[Path, tyro.conf.Positional] = Path()
    """A run's folder, for its last checkpoint, or a checkpoint file."""
    episodes: int | None = None
    """Episodes; by default as many as the run took, which gives its own number again."""


def main(args: Sequence[str]) -> None:
    """Evaluate as the command line says and print the return."""
    options = parse_flags(Options(), args, prog="evaluate_rl.py")
    evaluation = evaluate_run(options.run, options.episodes)
    print(f"return {evaluation.return_mean} +- {evaluation.return_std}")


if __name__ == "__main__":
    raise SystemExit(run(main))
