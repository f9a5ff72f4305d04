"""Measure what the forms of preconditioners are worth: compare_forms.py [--flag value ...]."""

import shlex
from collections.abc import Sequence

from _cli import parse_flags, run

from psgd_lm.form_study.study import StudyConfig, run_study


def main(args: Sequence[str]) -> None:
    """Measure, and print the tables."""
    config = parse_flags(StudyConfig(), args, prog="compare_forms.py")
    command = shlex.join(["python", "scripts/compare_forms.py", *args])
    print(run_study(config, command, print))
    print(f"\nfigures: {config.out}")


if __name__ == "__main__":
    raise SystemExit(run(main, folder_flag="--out"))
