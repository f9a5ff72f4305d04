"""Every experiment of the papers, by id, in the order of the report."""

from experiments.experiment import Experiment, by_id
from experiments.register import (
    alexnet,
    analysis,
    applications,
    cifar,
    delayed_xor,
    digits,
    esgd,
    kbfgs,
    kbfgs_study,
    lenet_study,
    logistic,
    resnet,
    rosenbrock,
    sequences,
    tensor_rank,
)

_MODULES = (
    alexnet,
    analysis,
    applications,
    cifar,
    delayed_xor,
    digits,
    esgd,
    kbfgs,
    kbfgs_study,
    lenet_study,
    logistic,
    resnet,
    rosenbrock,
    sequences,
    tensor_rank,
)

EXPERIMENTS: dict[str, Experiment] = by_id(
    experiment for module in _MODULES for experiment in module.EXPERIMENTS
)
