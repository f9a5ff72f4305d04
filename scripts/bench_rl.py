"""Time environments, or whole training runs: bench_rl.py raw|end-to-end [--flag value ...]."""

import shlex
import sys
from collections.abc import Sequence

from _cli import parse_flags, run
from rl_bench.end_to_end import EndToEndConfig, run_end_to_end
from rl_bench.raw import RawConfig, run_raw

from psgd_optim.tools.names import closest
from psgd_optim.types import InputError

PARTS = ("raw", "end-to-end")


def main(args: Sequence[str]) -> None:
    """Measure, and print the table."""
    part, *flags = args or [""]
    command = shlex.join(["python", "scripts/bench_rl.py", *args])

    def tell(line: str) -> None:
        print(line, file=sys.stderr)

    if part == "raw":
        raw = parse_flags(RawConfig(), flags, prog="bench_rl.py raw")
        table, out = run_raw(raw, command, tell), raw.out
    elif part == "end-to-end":
        whole = parse_flags(EndToEndConfig(), flags, prog="bench_rl.py end-to-end")
        table, out = run_end_to_end(whole, command, tell), whole.out
    else:
        raise InputError(f"Got {part!r} instead of what to measure; {closest(part, PARTS)}")
    print(table)
    print(f"\nfigures: {out}.json, {out}.md")


if __name__ == "__main__":
    raise SystemExit(run(main, folder_flag="--out"))
