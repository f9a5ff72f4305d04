"""Every experiment of the papers, by id, in the order of the report."""

from experiments.experiment import Experiment, by_id
from experiments.register import delayed_xor, rosenbrock, sequences

EXPERIMENTS: dict[str, Experiment] = by_id((
    *rosenbrock.EXPERIMENTS,
    *sequences.EXPERIMENTS,
    *delayed_xor.EXPERIMENTS,
))
