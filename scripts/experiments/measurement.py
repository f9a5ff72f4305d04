"""A measurement: figures of a condition, by seed; if it trains, then as it likes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from experiments.experiment import Criterion
from experiments.results import Key, Outcome, Results


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Functions of a seed that return figures."""

    functions: Mapping[str, Callable[[int, torch.device], Mapping[str, float]]]
    """By what is measured."""
    columns: Mapping[str, str]
    seeds: int = 1
    target: str = ""

    @property
    def labels(self) -> Sequence[str]:
        """What is measured."""
        return tuple(self.functions)

    @property
    def total(self) -> int:
        """How many measurements there are."""
        return len(self.functions) * self.seeds

    def with_seeds(self, seeds: int) -> Self:
        """Return it with another number of seeds."""
        return replace(self, seeds=seeds)

    def rates_of(self, label: str) -> Sequence[float]:
        """Return none: rates are not compared."""
        return ()

    def next_keys(self, results: Results) -> Sequence[Key]:
        """Return the measurements that are missing."""
        keys = [
            Key("", name, None, seed, 0) for name in self.functions for seed in range(self.seeds)
        ]
        return [key for key in keys if key not in results]

    def run(self, key: Key, device: torch.device) -> Outcome:
        """Measure once."""
        return Outcome(figures=dict(self.functions[key.method](key.seed, device)))

    def criteria(self) -> Sequence[Criterion]:
        """Return nothing: a measurement has no steps that a control could take."""
        return ()
