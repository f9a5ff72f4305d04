"""The methods of S3 and S4 for autoencoders.

Those of S4 average gradients with a decay of 0.9, where nothing else is said, and take its L2
penalty; those of S3 have neither.
"""

from collections.abc import Sequence

import torch
from torch import nn

from experiments.methods import sgd
from experiments.problem import Problem
from experiments.problems.autoencoders import DECAY, pixel_entropy
from experiments.problems.autoencoding import Autoencoding
from experiments.training import Method
from psgd_optim.peers import ESGD, KBFGS, KFAC, JacobiSGD, LimitedMemory
from psgd_optim.peers.likelihoods import bernoulli, normal
from psgd_optim.types import InputError

OUR_CURVES = "The renderer of CURVES is not known: our curves are a substitute."
_AVERAGE = 0.9
_MOMENTUM_RATE = 1 - _AVERAGE
"""What a step size of an average is by that of a sum."""


def kbfgs(damping: float, rates: Sequence[float]) -> Method:
    """Return K-BFGS after a pass through the images, with its learning rates."""

    def build(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
        optimizer = KBFGS(_model(problem), lr, damping=damping, weight_decay=DECAY)
        optimizer.warm_start(_autoencoding(problem).epoch())
        return optimizer

    return Method(build=build, rates=tuple(rates))


def kbfgs_limited(damping: float, rates: Sequence[float]) -> Method:
    """Return K-BFGS(L) after a pass through the images, with its learning rates."""

    def build(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
        kept = LimitedMemory()
        optimizer = KBFGS(_model(problem), lr, damping=damping, inverse=kept, weight_decay=DECAY)
        optimizer.warm_start(_autoencoding(problem).epoch())
        return optimizer

    return Method(build=build, rates=tuple(rates))


def kfac(damping: float, rates: Sequence[float]) -> Method:
    """Return KFAC after a pass through the images, with its learning rates."""

    def build(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
        draws = bernoulli if _autoencoding(problem).recipe.loss is pixel_entropy else normal
        optimizer = KFAC(
            _model(problem), lr, damping=damping, sampled_loss=draws, weight_decay=DECAY, seed=seed
        )
        optimizer.warm_start(_autoencoding(problem).epoch())
        return optimizer

    return Method(build=build, rates=tuple(rates))


def momentum(rates: Sequence[float]) -> Method:
    """Return SGD along the average of the gradients; rates are those of the sum, a tenth."""
    build = sgd(_AVERAGE, DECAY)
    return Method(build=build, rates=tuple(_MOMENTUM_RATE * rate for rate in rates))


def adam(eps: float, rates: Sequence[float]) -> Method:
    """Return torch's Adam with S4's decays."""

    def build(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
        betas = (_AVERAGE, _AVERAGE)
        return torch.optim.Adam(problem.parameters, lr, betas, eps=eps, weight_decay=DECAY)

    return Method(build=build, rates=tuple(rates))


def rmsprop(eps: float, rates: Sequence[float]) -> Method:
    """Return torch's RMSprop with S4's decay, along the gradient itself."""

    def build(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(
            problem.parameters, lr, alpha=_AVERAGE, eps=eps, weight_decay=DECAY
        )

    return Method(build=build, rates=tuple(rates))


def esgd(damping: float, rates: Sequence[float], refresh_every: int = 20) -> Method:
    """Return S3's method."""

    def build(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
        return ESGD(problem.parameters, lr, damping=damping, refresh_every=refresh_every, seed=seed)

    return Method(build=build, rates=tuple(rates))


def jacobi(damping: float, rates: Sequence[float]) -> Method:
    """Return S3's rival with the Hessian's diagonal."""

    def build(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
        return JacobiSGD(problem.parameters, lr, damping=damping, seed=seed)

    return Method(build=build, rates=tuple(rates))


def plain_rmsprop(eps: float, rates: Sequence[float]) -> Method:
    """Return torch's RMSprop with S3's decay, without a penalty."""

    def build(problem: Problem, lr: float, seed: int) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(problem.parameters, lr, alpha=_AVERAGE, eps=eps)

    return Method(build=build, rates=tuple(rates))


def _autoencoding(problem: Problem) -> Autoencoding:
    if not isinstance(problem, Autoencoding):
        raise InputError(f"Got {problem} for a method of S4; give an autoencoder.")
    return problem


def _model(problem: Problem) -> nn.Module:
    return _autoencoding(problem).model
