"""Every experiment of the papers, by id, in the order of the report."""

from experiments.experiment import Experiment, by_id
from experiments.register import applications, delayed_xor, rosenbrock, sequences

_MODULES = (applications, delayed_xor, rosenbrock, sequences)

EXPERIMENTS: dict[str, Experiment] = by_id(
    experiment for module in _MODULES for experiment in module.EXPERIMENTS
)
