"""Every experiment of the papers, by id, in the order of the report."""

from experiments.experiment import Experiment, by_id
from experiments.register import (
    alexnet,
    cifar,
    digits,
    lenet_study,
    logistic,
    resnet,
    rosenbrock,
)

EXPERIMENTS: dict[str, Experiment] = by_id((
    *rosenbrock.EXPERIMENTS,
    *digits.EXPERIMENTS,
    *cifar.EXPERIMENTS,
    *alexnet.EXPERIMENTS,
    *resnet.EXPERIMENTS,
    *lenet_study.EXPERIMENTS,
    *logistic.EXPERIMENTS,
))
