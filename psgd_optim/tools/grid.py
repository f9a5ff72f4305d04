"""What a comparison is of: optimizers by name, times learning rates and seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from psgd_optim.tools.names import closest
from psgd_optim.types import InputError


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The part of a comparison's flags that does not depend on the task."""

    optimizers: tuple[str, ...] = ("psgd", "adamw")
    """Optimizers by name, each with the settings that the preset has for it. NAME:1e-3,2e-3 has
    learning rates of its own, NAME@0.45 a run of 0.45 of the length with its own schedule;
    NAME:1e-3@0.45 both."""
    lrs: tuple[float, ...] = ()
    """Learning rates to try with every optimizer that names none; none takes its own."""
    grid: bool = False
    """Try three learning rates: the preset's for each optimizer, or half, all and twice its own."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of every run; the table is over them."""
    baseline: str = "adamw"
    """Optimizer that the others are held against, if it is in the comparison."""
    workers: int = 1
    """Runs at a time, each with --threads of its own."""
    run_dir: Path = Path("runs/compare")
    """Folder that the comparison and its runs are written to."""
    resume: bool = False
    """Go on with the comparison in the folder: runs that are finished are kept, and there may be
    more than it was started with."""
    overwrite: bool = False
    """Delete the comparison in the folder first."""

    def __post_init__(self) -> None:
        for name in ("optimizers", "seeds"):
            if not getattr(self, name):
                raise InputError(f"Got no {name}; give --{name} one or more.")
        if self.workers < 1:
            raise InputError(f"Got workers {self.workers}; give --workers 1 or more.")
        if self.grid and self.lrs:
            raise InputError("Got --grid and --lrs; give one of them.")

    def learning_rates(
        self, entry: "Entry", own: float, tuned: Mapping[str, tuple[float, ...]]
    ) -> tuple[float, ...]:
        """Return the learning rates to try with an optimizer.

        Args:
            entry: The optimizer.
            own: Its own learning rate.
            tuned: The preset's three, by the optimizer's name.

        Returns:
            The entry's, or those of `--lrs`, or three around its own, or its own.
        """
        several = tuned.get(entry.name, (own / 2, own, 2 * own)) if self.grid else (own,)
        return entry.lrs or self.lrs or several


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One optimizer of a comparison."""

    name: str
    """Of its settings."""
    lrs: tuple[float, ...] = ()
    """Its own learning rates; none for those of the grid."""
    fraction: float = 1.0
    """Of the steps, with a schedule for that length."""

    @property
    def label(self) -> str:
        """What the comparison calls it."""
        return self.name if self.fraction == 1 else f"{self.name}@{self.fraction:g}"


def parse_entry(text: str, known: Mapping[str, object]) -> Entry:
    """Read one of `--optimizers`.

    Args:
        text: `NAME[:LR,LR...][@FRACTION]`.
        known: Settings by name.

    Returns:
        The entry.

    Raises:
        InputError: If the name is not known or a number is none.

    >>> parse_entry("psgd:1e-3,2e-3@0.45", {"psgd": None})
    Entry(name='psgd', lrs=(0.001, 0.002), fraction=0.45)
    """
    rest, at, part = text.partition("@")
    name, colon, rates = rest.partition(":")
    if name not in known:
        raise InputError(f"There is no optimizer {name!r}; {closest(name, list(known))}")
    try:
        lrs = tuple(float(lr) for lr in rates.split(",")) if colon else ()
        fraction = float(part) if at else 1.0
    except ValueError as error:
        raise InputError(
            f"Got the optimizer {text!r}; write it NAME:1e-3,2e-3@0.45, or without its parts."
        ) from error
    if not 0 < fraction <= 1:
        raise InputError(f"Got the optimizer {text!r}; give a fraction above 0 and up to 1.")
    return Entry(name=name, lrs=lrs, fraction=fraction)


def edge_of_grid(lrs: Sequence[float], best: float) -> str:
    """Return a sentence if the best learning rate is the smallest or largest that was tried."""
    tried = sorted(set(lrs))
    if len(tried) == 1 or best not in (tried[0], tried[-1]):
        return ""
    end, more = ("smallest", "smaller") if best == tried[0] else ("largest", "larger")
    return f" The best is the {end} lr: a {more} one may be better."
