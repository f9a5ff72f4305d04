"""Compare optimizers on one task: compare.py TASK [PRESET] [--flag value ...]."""

from collections.abc import Sequence
from importlib import import_module

from _cli import BAD_INPUT, OK, run
from _comparison import run_task

from psgd_optim.tools.names import closest
from psgd_optim.types import InputError

TASKS = {"lm": "_compare_lm", "rl": "_compare_rl"}
"""The module with each task; imported when asked for, since each needs an extra of its own."""


def main(args: Sequence[str]) -> None:
    """Run the comparison of a task."""
    if not args or args[0] in ("-h", "--help"):
        print("usage: compare.py TASK [PRESET] [--flag value ...]\n\ntasks:", *TASKS)
        print("\ncompare.py TASK --help lists the flags.")
        raise SystemExit(OK if args else BAD_INPUT)
    name = args[0]
    if name not in TASKS:
        raise InputError(f"There is no task {name!r}; {closest(name, list(TASKS))}")
    try:
        task = import_module(TASKS[name]).TASK
    except ModuleNotFoundError as error:
        raise InputError(
            f"compare.py {name} needs {error.name}; pip install 'psgd-toolkit[{name},cli]'."
        ) from error
    run_task(task, args[1:])


if __name__ == "__main__":
    raise SystemExit(run(main))
