"""Every experiment of the papers, by id, in the order of the report."""

from experiments.experiment import Experiment, by_id
from experiments.register import applications, rosenbrock

EXPERIMENTS: dict[str, Experiment] = by_id((*applications.EXPERIMENTS, *rosenbrock.EXPERIMENTS))
