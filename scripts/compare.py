"""Compare optimizers on one task: compare.py TASK [PRESET] [--flag value ...]."""

import textwrap
from collections.abc import Callable, Sequence

from _cli import BAD_INPUT, OK, again, parse, parse_known, run

from psgd_lm import compare as lm
from psgd_lm.entries import LMGrid, known_optimizers, members
from psgd_lm.presets import ABOUT, CHOICES, PRESETS
from psgd_optim.tools.names import closest
from psgd_optim.types import InputError


def compare_lm(args: Sequence[str]) -> None:
    """Compare on a language model, and print the table."""
    preset, flags = "embedded", list(args)
    if flags and not flags[0].startswith("-"):
        preset, *flags = flags
    grid, rest = parse_known(
        LMGrid(), flags, prog=f"compare.py lm {preset}", more_help=_names(preset)
    )
    task = parse(PRESETS, [preset, *rest], prog="compare.py lm", about=ABOUT, choices=CHOICES)
    result = lm.compare(members(preset, task, grid), grid)
    if result.status != "finished":
        print(again("compare.py", ["lm", *args]))
        return
    print(result.table)
    print(f"\ncurves: {result.run_dir / lm.PICTURE}\nrun folder: {result.run_dir}")
    if not any(row.finished for row in result.rows):
        raise InputError("Every run diverged or failed; try lower learning rates with --lrs.")


def _names(preset: str) -> str:
    """Return what a comparison can be of, for `--help`."""
    lines = [
        f"presets: {', '.join(PRESETS)}",
        f"optimizers with {preset}: {', '.join(known_optimizers(preset))}",
        f"flags of every run: train_lm.py {preset} --help",
    ]
    return "\n".join(textwrap.fill(line, 90, subsequent_indent="    ") for line in lines)


TASKS: dict[str, Callable[[Sequence[str]], None]] = {"lm": compare_lm}


def main(args: Sequence[str]) -> None:
    """Run the comparison of a task."""
    if not args or args[0] in ("-h", "--help"):
        print("usage: compare.py TASK [PRESET] [--flag value ...]\n\ntasks:", *TASKS)
        print("\ncompare.py TASK --help lists the flags.")
        raise SystemExit(OK if args else BAD_INPUT)
    if args[0] not in TASKS:
        raise InputError(f"There is no task {args[0]!r}; {closest(args[0], list(TASKS))}")
    TASKS[args[0]](args[1:])


if __name__ == "__main__":
    raise SystemExit(run(main))
