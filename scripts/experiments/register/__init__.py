"""Every experiment of the papers, by id, in the order of the report."""

from experiments.experiment import Experiment, by_id
from experiments.register import (
    alexnet,
    applications,
    cifar,
    delayed_xor,
    digits,
    lenet_study,
    logistic,
    resnet,
    rosenbrock,
    sequences,
)

_MODULES = (
    alexnet,
    applications,
    cifar,
    delayed_xor,
    digits,
    lenet_study,
    logistic,
    resnet,
    rosenbrock,
    sequences,
)

EXPERIMENTS: dict[str, Experiment] = by_id(
    experiment for module in _MODULES for experiment in module.EXPERIMENTS
)
