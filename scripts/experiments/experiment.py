"""An experiment: a paper's claim, how it is tried here, and what counts as reproduced."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import torch

from experiments.results import Key, Outcome, Results

REPRODUCED, REDUCED, MISSED = "reproduced", "reproduced, reduced", "not reproduced"
UNTESTED, NOT_RUN, INFEASIBLE = "runs, claim not tested", "not run", "not feasible here"


@dataclass(frozen=True)
class Finding:
    """What a criterion saw."""

    holds: bool
    evidence: str
    """The figures that were held against each other."""


@dataclass(frozen=True)
class Criterion:
    """One thing that has to be so for the claim to be reproduced."""

    text: str
    check: Callable[[Results], Finding]
    figure: str = ""
    """What is compared, where it is a single figure."""

    def told(self, columns: Mapping[str, str]) -> str:
        """Return the text for a reader, with what a table calls the figure."""
        if not self.figure:
            return self.text
        return f"{columns.get(self.figure, self.figure.replace('_', ' '))}: {self.text}"


class Study(Protocol):
    """Which runs an experiment takes, and how one is done."""

    @property
    def target(self) -> str:
        """The figure that says how good a run is; less is better."""

    @property
    def columns(self) -> Mapping[str, str]:
        """Figures for the table, with their headings."""

    @property
    def labels(self) -> Sequence[str]:
        """The methods, in the order of the table."""

    @property
    def seeds(self) -> int:
        """How many draws it takes."""

    @property
    def total(self) -> int:
        """How many runs it takes."""

    def with_seeds(self, seeds: int) -> Self:
        """Return the study with another number of draws."""

    def rates_of(self, label: str) -> Sequence[float]:
        """Return a method's learning rates, its own default first; none for what has none."""

    def next_keys(self, results: Results) -> Sequence[Key]:
        """Return the runs still to be done, given those that are; none at the end."""

    def run(self, key: Key, device: torch.device) -> Outcome:
        """Do one run."""

    def criteria(self) -> Sequence[Criterion]:
        """Return what any run of this study has to fulfil: that its controls fail."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One way to try an experiment."""

    setting: str
    """What is done, and how it differs from the paper."""
    study: Study
    criteria: Sequence[Criterion]
    is_faithful: bool = False
    """Whether model, data and length are the paper's."""
    tests_claim: bool = True
    """Whether a paper's claim could fail in it; else it shows only that all parts work."""
    minutes: float
    """About how long it takes with one worker on one CPU core."""

    def all_criteria(self) -> tuple[Criterion, ...]:
        """Return the claim's criteria and the study's own."""
        return (*self.criteria, *self.study.criteria())


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A row of the register."""

    id: str
    """The paper, S0 to S4, and a number."""
    title: str
    claim: str
    """What the paper says, with its figures."""
    data: tuple[str, ...] = ()
    """Folders of real data that it needs."""
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    """`quick` (a minute or so), `full` (as long as it takes), either or both."""
    obstacle: str = ""
    """Why it cannot be tried here, where it has no budget; or what a reduced one leaves open."""


def own_results(study: Study, results: Results) -> Results:
    """Return the runs that a study would ask for, in its order.

    A file may also hold runs of other lengths, rates or methods: of a changed study, or of one as
    it was once registered. They say nothing of this one, nor which of its rates is best.
    """
    own = Results([], study.target)
    while asked := [key for key in study.next_keys(own) if key in results]:
        own = Results([*own.records, *(results[key] for key in asked)], study.target)
    return own


def verdict(budget: Budget, results: Results) -> tuple[str, Sequence[Finding]]:
    """Return the verdict on an experiment and the findings behind it.

    Args:
        budget: How it was tried.
        results: What came of it, and of nothing else.

    Returns:
        `NOT_RUN` while runs are missing; `MISSED` if any criterion does not hold; else how much
        that says.
    """
    if budget.study.next_keys(results):
        return NOT_RUN, ()
    findings = [criterion.check(results) for criterion in budget.all_criteria()]
    if not all(finding.holds for finding in findings):
        return MISSED, findings
    if not budget.tests_claim:
        return UNTESTED, findings
    return (REPRODUCED if budget.is_faithful else REDUCED), findings


def by_id(experiments: Iterable[Experiment]) -> dict[str, Experiment]:
    """Return experiments by their ids, in their order; an id that is there twice is a defect."""
    found: dict[str, Experiment] = {}
    for experiment in experiments:
        if experiment.id in found:
            raise ValueError(f"The experiment {experiment.id} is registered twice.")
        found[experiment.id] = experiment
    return dict(sorted(found.items(), key=lambda item: _natural(item[0])))


def _natural(name: str) -> list[int | str]:
    """Return a sorting key in which S0-10 comes after S0-2b."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
