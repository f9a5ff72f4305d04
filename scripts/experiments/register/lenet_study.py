"""S2-9 to S2-12: what a trained network knows of its training images."""

import functools
from collections.abc import Callable, Mapping

import torch

from experiments.criteria import at_least, below
from experiments.experiment import Budget, Criterion, Experiment, Finding
from experiments.measurement import Measurement
from experiments.methods import KRON, TRUST_REGION, psgd, sgd
from experiments.problems.lenet_study import (
    Sizes,
    agreement,
    certainty,
    entropy_subsets,
    forgettability,
)
from experiments.results import Results
from experiments.training import Method, falling

_SGD, _PSGD, _BOTH = "SGD", "PSGD", "SGD against PSGD"
_METHODS = {
    _SGD: Method(build=sgd(0.9), rates=(0.05,), schedule=falling(0.01)),
    _PSGD: Method(build=psgd(KRON, 0.01, clip=TRUST_REGION), rates=(0.1,), schedule=falling(0.01)),
}
_QUICK = Sizes(images=6000, subset=1000, epochs=4, subset_epochs=8)
_SMALL = Sizes(images=3000, subset=1000, epochs=6, subset_epochs=6)
_FULL = Sizes(images=60000, subset=10000, epochs=20, subset_epochs=20)
_MIDDLE = Sizes(images=20000, subset=5000, epochs=20, subset_epochs=40)
_REPLACED = "LeNet5 on MNIST in place of ResNet-18 on CIFAR-10"
_ON_GPU = "Two hundred epochs of ResNet-18 take a GPU, and the whole of CIFAR-10."

_Study = Callable[[Method, Sizes, int, torch.device], Mapping[str, float]]


def _by_method(study: _Study, sizes: Sizes, seeds: int, columns: Mapping[str, str]) -> Measurement:
    functions = {name: functools.partial(study, method, sizes) for name, method in _METHODS.items()}
    return Measurement(functions=functions, columns=columns, seeds=seeds)


def _with_agreement(sizes: Sizes, seeds: int) -> Measurement:
    alone = _by_method(forgettability, sizes, seeds, {})
    both = functools.partial(agreement, _METHODS[_SGD], _METHODS[_PSGD], sizes)
    columns = {
        "error": "test error, %",
        "error_forgettable": "on forgettable images alone, %",
        "forgotten": "images forgotten once, %",
        "correlation": "rank correlation (entropy; of both orders)",
    }
    return Measurement(functions={**alone.functions, _BOTH: both}, columns=columns, seeds=seeds)


def _farther(method: str) -> Criterion:
    def check(results: Results) -> Finding:
        low, high, full = (
            results.mean(method, f"distance_{part}") for part in ("low", "high", "full")
        )
        return Finding(low < high <= 1.05 * full, f"{low:.3g} < {high:.3g} <= {full:.3g}")

    return Criterion(f"{method} moves farther from its start on uncertain images", check)


_SUBSETS = {
    "error_full": "test error, all images, %",
    "error_high": "uncertain ones, %",
    "error_low": "certain ones, %",
    "distance_full": "distance, all",
    "distance_high": "uncertain",
    "distance_low": "certain",
}
_CERTAINTY = {
    "error": "test error, %",
    "entropy_min": "least entropy",
    "entropy": "mean entropy",
    "entropy_max": "largest",
    "margin_min": "least margin",
    "margin": "mean margin",
}
_CORRELATED = tuple(at_least(name, "correlation", 0.3) for name in _METHODS)
_GAPS = tuple(at_least(name, "gap", 10.0) for name in _METHODS)

EXPERIMENTS = (
    Experiment(
        id="S2-9",
        title="Certainty of a trained network",
        claim="Mean entropy .26 after PSGD, .01 after SGD; with a decay 40 times as strong.",
        data=("mnist",),
        budgets={
            "quick": Budget(
                setting=f"{_REPLACED}: 3,000 images, 6 epochs, no decay.",
                minutes=0.4,
                study=_by_method(certainty, _SMALL, 1, _CERTAINTY),
                criteria=(below(_SGD, _PSGD, "entropy"),),
            ),
            "full": Budget(
                setting=f"{_REPLACED}: 20,000 images, 20 epochs, no decay, three seeds.",
                minutes=14.0,
                study=_by_method(certainty, _MIDDLE, 3, _CERTAINTY),
                criteria=(below(_SGD, _PSGD, "entropy"),),
            ),
        },
        obstacle=_ON_GPU,
    ),
    Experiment(
        id="S2-10",
        title="Training on the most forgettable images",
        claim="Accuracy on 5,000 of 50,000 images: PSGD 56.46 %, SGD 42.48; on all 96.65, 96.21.",
        data=("mnist",),
        budgets={
            "quick": Budget(
                setting=f"{_REPLACED}: 1,000 of 3,000 images, seen once per epoch, 6 epochs.",
                minutes=0.6,
                study=_with_agreement(_SMALL, 1),
                criteria=(below(_PSGD, _SGD, "error_forgettable", factor=1.2),),
            ),
            "full": Budget(
                setting=f"{_REPLACED}: 5,000 of 20,000 images, seen once per epoch; three seeds.",
                minutes=35.0,
                study=_with_agreement(_MIDDLE, 3),
                criteria=(below(_PSGD, _SGD, "error_forgettable"),),
            ),
        },
        obstacle=_ON_GPU,
    ),
    Experiment(
        id="S2-11",
        title="Entropy and forgetting",
        claim="Rank correlation of entropy and forgetting: .72 with SGD, .73 with PSGD.",
        data=("mnist",),
        budgets={
            "quick": Budget(
                setting=f"{_REPLACED}: 3,000 images, seen once per epoch, 6 epochs.",
                minutes=0.4,
                study=_by_method(forgettability, _SMALL, 1, {"correlation": "rank correlation"}),
                criteria=_CORRELATED,
            ),
            "full": Budget(
                setting=f"{_REPLACED}: 20,000 images, seen once per epoch; three seeds.",
                minutes=21.0,
                study=_by_method(forgettability, _MIDDLE, 3, {"correlation": "rank correlation"}),
                criteria=_CORRELATED,
            ),
        },
        obstacle=_ON_GPU,
    ),
    Experiment(
        id="S2-12",
        title="Training on certain or uncertain images",
        claim="Accuracy: all 99.3 %, the 10,000 most uncertain images 99.3, the most certain 74.2.",
        data=("mnist",),
        budgets={
            "quick": Budget(
                setting="1,000 of 6,000 images; 4 epochs before the choice, 8 after it.",
                minutes=0.7,
                study=_by_method(entropy_subsets, _QUICK, 1, _SUBSETS),
                criteria=_GAPS,
            ),
            "full": Budget(
                setting="As in the paper: 10,000 of 60,000 images, 20 epochs; two seeds.",
                is_faithful=True,
                minutes=45.0,
                study=_by_method(entropy_subsets, _FULL, 2, _SUBSETS),
                criteria=(*_GAPS, *(_farther(name) for name in _METHODS)),
            ),
        },
    ),
)
