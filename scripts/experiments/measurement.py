"""A measurement: figures of a condition, by seed, with nothing trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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

    def default_rate(self, label: str) -> float | None:
        """Return None: nothing is trained."""
        return None

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
