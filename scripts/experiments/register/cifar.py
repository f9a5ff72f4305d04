"""S0-4, S0-5, S0-5t: convolutional networks on CIFAR-10."""

import functools
from collections.abc import Mapping

import torch

from experiments.criteria import below, ordered
from experiments.data import cifar10
from experiments.experiment import Budget, Experiment
from experiments.measurement import Measurement
from experiments.methods import (
    EQUILIBRATION,
    KRON,
    SCALING,
    SPARSE_LU,
    Build,
    psgd,
    rmsprop,
    sgd,
)
from experiments.problem import Problem
from experiments.problems.cifar import conv_autoencoder, leaky_cnn, shift_and_zoom, to_signed
from experiments.problems.costs import time_figures
from experiments.problems.images import Classification, Reconstruction, Task, seeded
from experiments.training import Method, Race
from psgd_optim.clipping import Clip, ClipNorm
from psgd_optim.forms.base import Preconditioner
from psgd_optim.schedules import Every, LogPeriod
from psgd_optim.scope import Scope
from psgd_optim.types import Rate

_DATA = ("cifar10_subset",)
_PART = "10,000 of the 50,000 training images and 2,000 of the 10,000 test images are there."
_CLIP: tuple[Clip, ...] = (ClipNorm(10.0),)


def _psgd(form: Preconditioner | Scope, clip: tuple[Clip, ...] = (), gate: Rate = 1.0) -> Build:
    """Return what makes a PSGD that steps with the last iteration's Q, as all of S0."""
    return psgd(form, 0.01, clip=clip, gate=gate, update_first=False)


def _task(batch_size: int, *, moved: bool = False) -> Task:
    return Task(
        train=cifar10("train10k"),
        test=cifar10("test2k"),
        batch_size=batch_size,
        scale=to_signed,
        augment=shift_and_zoom if moved else None,
        sampled=1000,
    )


def _autoencoder(width: int, batch_size: int, case: str, seed: int, at: torch.device) -> Problem:
    with seeded(seed):
        model = conv_autoencoder(width)
    return Reconstruction(model, _task(batch_size), seed, at)


def _classifier(width: int, batch_size: int, case: str, seed: int, at: torch.device) -> Problem:
    with seeded(seed):
        model = leaky_cnn(width)
    return Classification(model, _task(batch_size, moved=True), seed, at)


_AUTOENCODER: Mapping[str, Method] = {
    "SGD": Method(build=sgd(), rates=(0.2,)),
    "RMSProp": Method(build=rmsprop, rates=(2e-4, 2e-3)),
    "ESGD": Method(build=_psgd(EQUILIBRATION), rates=(0.05,)),
    "SCAN": Method(build=_psgd(SCALING), rates=(0.05,)),
    "Kron": Method(build=_psgd(KRON), rates=(0.05,)),
    "SPLU": Method(build=_psgd(SPARSE_LU, _CLIP), rates=(0.05,)),
}
_CLASSIFIER: Mapping[str, Method] = {
    "SGD": Method(build=sgd(), rates=(0.1,)),
    "RMSProp": Method(build=rmsprop, rates=(5e-4,)),
    "ESGD": Method(build=_psgd(EQUILIBRATION, _CLIP, LogPeriod()), rates=(0.05,)),
    "SCAN": Method(build=_psgd(SCALING, _CLIP, LogPeriod()), rates=(0.05,)),
    "Kron": Method(build=_psgd(KRON, _CLIP, LogPeriod()), rates=(0.05,)),
}
_TIMED: Mapping[str, Method] = {
    **_AUTOENCODER,
    "Kron, every 10": Method(build=_psgd(KRON, gate=Every(10)), rates=(0.05,)),
}


def _autoencoder_race(width: int, batch_size: int, steps: int, *names: str) -> Race:
    return Race(
        make=functools.partial(_autoencoder, width, batch_size),
        methods={name: _AUTOENCODER[name] for name in names},
        steps=steps,
        seeds=1,
        target="loss",
        columns={"loss": "training error", "test_loss": "test error"},
    )


def _classifier_race(width: int, batch_size: int, steps: int, *names: str) -> Race:
    return Race(
        make=functools.partial(_classifier, width, batch_size),
        methods={name: _CLASSIFIER[name] for name in names},
        steps=steps,
        seeds=1,
        target="loss",
        columns={"loss": "training loss", "error": "test error, %"},
    )


def _timed(name: str, steps: int, seed: int, device: torch.device) -> Mapping[str, float]:
    problem = _autoencoder(32, 128, "", seed, device)
    return time_figures(problem, _TIMED[name], steps, device)


def _times(steps: int, *names: str) -> Measurement:
    functions = {name: functools.partial(_timed, name, steps) for name in names}
    return Measurement(functions=functions, columns={"ms": "time of a step, ms"})


_RATIOS = (
    below("Kron", "SGD", "ms", factor=3.0),
    below("Kron, every 10", "SGD", "ms", factor=1.5),
)

_PSGD_LEADS = tuple(
    below(name, rival, "loss") for name in ("Kron", "SCAN") for rival in ("SGD", "RMSProp")
)

EXPERIMENTS = (
    Experiment(
        id="S0-4",
        title="Convolutional network on CIFAR-10",
        claim="Test error of Kron and SCAN slightly below 10 % after 500,000 iterations.",
        data=_DATA,
        budgets={
            "quick": Budget(
                setting=(
                    "An eighth of the width, batches of 20 and 250 iterations; "
                    f"{_PART} Weights start as in the paper's other experiments."
                ),
                minutes=0.6,
                study=_classifier_race(12, 20, 250, "SGD", "RMSProp", "SCAN", "Kron"),
                criteria=_PSGD_LEADS,
            ),
            "full": Budget(
                setting=f"A third of the width and 2,000 iterations; {_PART}",
                minutes=120.0,
                study=_classifier_race(32, 100, 2000, "SGD", "RMSProp", "ESGD", "SCAN", "Kron"),
                criteria=_PSGD_LEADS,
            ),
        },
        obstacle=f"500,000 iterations take a GPU for hours. {_PART}",
    ),
    Experiment(
        id="S0-5",
        title="Convolutional autoencoder on CIFAR-10",
        claim="Error: SGD 6.7e-3, RMSProp 4.8e-3, ESGD and SCAN 4.6e-3, Kron 4.0e-3.",
        data=_DATA,
        budgets={
            "quick": Budget(
                setting=f"Half the width, batches of 32 and 300 iterations; {_PART}",
                minutes=0.6,
                study=_autoencoder_race(16, 32, 300, "SGD", "RMSProp", "Kron"),
                criteria=(ordered(("Kron", "RMSProp", "SGD"), "loss"),),
            ),
            "full": Budget(
                setting=f"The paper's model, 2,000 iterations instead of 50,000; {_PART}",
                minutes=70.0,
                study=_autoencoder_race(
                    32, 128, 2000, "SGD", "RMSProp", "ESGD", "SCAN", "Kron", "SPLU"
                ),
                criteria=(
                    ordered(("Kron", "SCAN", "RMSProp", "SGD"), "loss"),
                    ordered(("Kron", "ESGD", "RMSProp", "SGD"), "loss"),
                ),
            ),
        },
        obstacle=f"50,000 iterations take some hours per method. {_PART}",
    ),
    Experiment(
        id="S0-5t",
        title="Time of an iteration",
        claim="Milliseconds on a GPU: SGD 7, RMSProp 8, ESGD 14, SCAN 15, Kron 17, SPLU 17.",
        data=_DATA,
        budgets={
            "quick": Budget(
                setting="The paper's model and batch; processor time of 10 steps, not of a GPU.",
                minutes=0.4,
                study=_times(10, "SGD", "SCAN", "Kron", "Kron, every 10"),
                criteria=_RATIOS,
            ),
            "full": Budget(
                setting="The paper's model and batch; processor time of 50 steps, not of a GPU.",
                minutes=3.0,
                study=_times(50, *_TIMED),
                criteria=_RATIOS,
            ),
        },
    ),
)
