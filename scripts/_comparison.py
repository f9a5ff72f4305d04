"""What the tasks of compare.py have in common: the flags of grid and runs, and the report."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from _choices import Choices
from _cli import again, parse, parse_known

from psgd_optim.tools.grid import Grid
from psgd_optim.types import InputError

Config = TypeVar("Config")
GridType = TypeVar("GridType", bound=Grid)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What there is to say of a comparison."""

    status: str
    run_dir: Path
    table: str
    pictures: Sequence[str]
    """File names in the folder."""
    is_any_finished: bool


@dataclass(frozen=True, kw_only=True)
class Task(Generic[Config, GridType]):
    """What compare.py can compare optimizers on."""

    name: str
    preset: str
    """Taken if none is named."""
    presets: Mapping[str, Config]
    about: Mapping[str, str]
    choices: Choices
    grid: GridType
    known: Callable[[str], Mapping[str, object]]
    """What the optimizers' names stand for with a preset."""
    compare: Callable[[str, Config, GridType], Outcome]
    """Takes the preset's name, the settings of every run, and the grid."""


def run_task(task: Task[Config, GridType], args: Sequence[str]) -> None:
    """Compare, and print the table.

    Args:
        task: What is compared on.
        args: The command line after the task's name.

    Raises:
        InputError: If something cannot be used, or no run finished.
    """
    preset, flags = task.preset, list(args)
    if flags and not flags[0].startswith("-"):
        preset, *flags = flags
    prog = f"compare.py {task.name}"
    grid, rest = parse_known(
        task.grid, flags, prog=f"{prog} {preset}", more_help=_names(task, preset)
    )
    config = parse(task.presets, [preset, *rest], prog=prog, about=task.about, choices=task.choices)
    outcome = task.compare(preset, config, grid)
    if outcome.status != "finished":
        print(again("compare.py", [task.name, *args]))
        return
    pictures = ", ".join(str(outcome.run_dir / name) for name in outcome.pictures)
    print(f"{outcome.table}\n\ncurves: {pictures}\nrun folder: {outcome.run_dir}")
    if not outcome.is_any_finished:
        raise InputError("Every run diverged or failed; try lower learning rates with --lrs.")


def _names(task: Task[Config, GridType], preset: str) -> str:
    """Return what a comparison can be of, for `--help`."""
    lines = [
        f"presets: {', '.join(task.presets)}",
        f"optimizers with {preset}: {', '.join(task.known(preset))}",
        f"flags of every run: train_{task.name}.py {preset} --help",
    ]
    return "\n".join(textwrap.fill(line, 90, subsequent_indent="    ") for line in lines)
