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

EXPERIMENTS: dict[str, Experiment] = by_id((
    *alexnet.EXPERIMENTS,
    *analysis.EXPERIMENTS,
    *applications.EXPERIMENTS,
    *cifar.EXPERIMENTS,
    *delayed_xor.EXPERIMENTS,
    *digits.EXPERIMENTS,
    *esgd.EXPERIMENTS,
    *kbfgs.EXPERIMENTS,
    *kbfgs_study.EXPERIMENTS,
    *lenet_study.EXPERIMENTS,
    *logistic.EXPERIMENTS,
    *resnet.EXPERIMENTS,
    *rosenbrock.EXPERIMENTS,
    *sequences.EXPERIMENTS,
    *tensor_rank.EXPERIMENTS,
))
