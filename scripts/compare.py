"""Compare optimizers on one task: compare.py TASK [PRESET] [--flag value ...]."""

from collections.abc import Sequence

from _cli import BAD_INPUT, OK, again, parse, parse_known, run

from psgd_lm import compare as lm
from psgd_lm.presets import ABOUT, CHOICES, PRESETS
from psgd_optim.tools.names import closest
from psgd_optim.types import InputError

TASKS = ["lm"]


def main(args: Sequence[str]) -> None:
    """Run the comparison, and print its table."""
    if not args or args[0] in ("-h", "--help"):
        print("usage: compare.py TASK [PRESET] [--flag value ...]\n\ntasks:", *TASKS)
        print("\ncompare.py TASK --help lists the flags.")
        raise SystemExit(OK if args else BAD_INPUT)
    if args[0] not in TASKS:
        raise InputError(f"There is no task {args[0]!r}; {closest(args[0], TASKS)}")
    preset, flags = "embedded", list(args[1:])
    if flags and not flags[0].startswith("-"):
        preset, *flags = flags
    grid, rest = parse_known(lm.Grid(), flags, prog=f"compare.py lm {preset}")
    task = parse(PRESETS, [preset, *rest], prog="compare.py lm", about=ABOUT, choices=CHOICES)
    runs = lm.members(preset, task, grid)
    result = lm.compare(runs, grid.run_dir, resume=grid.resume, overwrite=grid.overwrite)
    if result.status == "finished":
        print(result.table)
        print(f"\ncurves: {result.run_dir / lm.PICTURE}\nrun folder: {result.run_dir}")
        if not any(row.finished for row in result.rows):
            raise InputError("Every run diverged; give lower learning rates with --lrs.")
    else:
        print(again("compare.py", args))


if __name__ == "__main__":
    raise SystemExit(run(main))
