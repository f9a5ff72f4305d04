"""Time the steps of optimizers, and take them apart: bench_step.py [--flag value ...]."""

import shlex
import sys
from collections.abc import Sequence

from _cli import parse_flags, run
from step_bench.study import BenchConfig, run_bench


def main(args: Sequence[str]) -> None:
    """Measure, and print the tables."""
    config = parse_flags(BenchConfig(), args, prog="bench_step.py")
    command = shlex.join(["python", "scripts/bench_step.py", *args])
    print(run_bench(config, command, lambda line: print(line, file=sys.stderr)))
    print(f"\nfigures: {config.out}.json, {config.out}.md")


if __name__ == "__main__":
    raise SystemExit(run(main, folder_flag="--out"))
