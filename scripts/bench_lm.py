"""Time training and evaluation of a language model: bench_lm.py [--flag value ...]."""

import shlex
import sys
from collections.abc import Sequence

from _cli import parse_flags, run
from lm_bench.study import BenchConfig, run_bench


def main(args: Sequence[str]) -> None:
    """Measure, and print the table."""
    config = parse_flags(BenchConfig(), args, prog="bench_lm.py")
    command = shlex.join(["python", "scripts/bench_lm.py", *args])
    print(run_bench(config, command, lambda line: print(line, file=sys.stderr)))
    print(f"\nfigures: {config.out}.json, {config.out}.md")


if __name__ == "__main__":
    raise SystemExit(run(main, folder_flag="--out"))
