"""S2-9 to S2-12: what a trained network knows of its training images."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace

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
from experiments.register.digits import lenet_method
from experiments.results import Results
from experiments.training import Method, falling

_SGD, _PSGD, _BOTH = "SGD", "PSGD", "SGD against PSGD"
_METHODS = {
    name: lenet_method(source, steps=1)  # which only rates of Q that fall depend on
    for name, source in ((_SGD, "SGD with momentum"), (_PSGD, "PSGD Newton Kron"))
}
_FALLING = falling(0.01)
_HASTY = {
    _SGD: Method(build=sgd(0.9), rates=(0.1,), schedule=_FALLING),
    _PSGD: Method(build=psgd(KRON, 0.03, clip=TRUST_REGION), rates=(0.3,), schedule=_FALLING),
}
"""With steps for short trainings, in which those of the paper leave PSGD half trained."""
_STEPS = (
    "steps of 0.1 for SGD, the best of 0.02 to 0.2, and of 0.3, with 0.03 for Q, for PSGD, where "
    "S1-5's 0.05, 0.1 and 0.01 leave PSGD half trained"
)
_QUICK = Sizes(images=6000, subset=1000, epochs=4, subset_epochs=25)
_SMALL = Sizes(images=3000, subset=1000, epochs=6, subset_epochs=6)
_SHORT = Sizes(images=3000, subset=1000, epochs=10, subset_epochs=20)
_FULL = Sizes(images=60000, subset=10000, epochs=20, subset_epochs=20)
_MIDDLE = Sizes(images=20000, subset=5000, epochs=20, subset_epochs=40)
_REPLACED = "LeNet5 on MNIST in place of ResNet-18 on CIFAR-10"
_ON_GPU = "Two hundred epochs of ResNet-18 take a GPU, and the whole of CIFAR-10."

_Study = Callable[[Method, Sizes, int, torch.device], Mapping[str, float]]


def _by_method(
    study: _Study,
    sizes: Sizes,
    seeds: int,
    columns: Mapping[str, str],
    methods: Mapping[str, Method] = _METHODS,
) -> Measurement:
    functions = {name: functools.partial(study, method, sizes) for name, method in methods.items()}
    return Measurement(functions=functions, columns=columns, seeds=seeds)


def _at_loss(until: float, sizes: Sizes, seeds: int, methods: Mapping[str, Method]) -> Measurement:
    """Return the certainty of both methods at the same training loss."""

    def study(method: Method, sizes: Sizes, seed: int, device: torch.device) -> Mapping[str, float]:
        return certainty(method, sizes, until, seed, device)

    return _by_method(study, sizes, seeds, _CERTAINTY, methods)


def _with_agreement(sizes: Sizes, seeds: int) -> Measurement:
    alone = _by_method(forgettability, sizes, seeds, {})
    both = functools.partial(agreement, _METHODS[_SGD], _METHODS[_PSGD], sizes)
    columns = {**_FORGETTING, "correlation": "rank correlation (entropy; of both orders)"}
    return Measurement(functions={**alone.functions, _BOTH: both}, columns=columns, seeds=seeds)


def _alike(figure: str, factor: float) -> Criterion:
    """Return that the figures of both methods are within a factor of each other."""

    def check(results: Results) -> Finding:
        ours, theirs = (results.mean(name, figure) for name in (_PSGD, _SGD))
        holds = max(ours, theirs) <= factor * min(ours, theirs)
        return Finding(holds, f"PSGD {ours:.3g}, SGD {theirs:.3g}")

    return Criterion(f"{figure} of both methods within {factor:g} times each other", check)


def _farther(method: str) -> Criterion:
    def check(results: Results) -> Finding:
        low, high, full = (
            results.mean(method, f"distance_{part}") for part in ("low", "high", "full")
        )
        return Finding(low < high <= 1.05 * full, f"{low:.3g} < {high:.3g} <= {full:.3g}")

    return Criterion(f"{method} moves farther from its start on uncertain images", check)


_FORGETTING = {
    "error": "test error, %",
    "error_forgettable": "on forgettable images alone, %",
    "forgotten": "images forgotten once, %",
}
_SUBSETS = {
    "error_full": "test error, all images, %",
    "error_high": "uncertain ones, %",
    "error_low": "certain ones, %",
    "distance_full": "distance, all",
    "distance_high": "uncertain",
    "distance_low": "certain",
}
_CERTAINTY = {
    "loss": "training loss",
    "error": "test error, %",
    "entropy_min": "least entropy",
    "entropy": "mean entropy",
    "entropy_max": "largest",
    "margin_min": "least margin",
    "margin": "mean margin",
}
_CORRELATED = tuple(at_least(name, "correlation", 0.3) for name in _METHODS)
_CERTAIN = (_alike("loss", 1.3), below(_SGD, _PSGD, "entropy"))
_FORGETTABLE = (
    _alike("error", 1.3),
    below(_PSGD, _SGD, "error_forgettable"),
    below(_PSGD, _SGD, "error"),
)
_UNCERTAIN_TEACH = (
    _alike("error_full", 1.3),
    *(at_least(name, "gap", 10.0) for name in _METHODS),
    *(_farther(name) for name in _METHODS),
)

EXPERIMENTS = (
    Experiment(
        id="S2-9",
        title="Certainty of a trained network",
        claim="Mean entropy .26 after PSGD, .01 after SGD; with a decay 40 times as strong.",
        data=("mnist",),
        budgets={
            "quick": Budget(
                setting=f"{_REPLACED}: 3,000 images, until the training loss is 0.05; no decay; "
                f"{_STEPS}.",
                minutes=0.7,
                study=_at_loss(0.05, replace(_SHORT, epochs=12), 2, _HASTY),
                criteria=_CERTAIN,
            ),
            "full": Budget(
                setting=f"{_REPLACED}: 20,000 images, until the training loss is 0.01, but at most "
                "20 epochs; no decay, three seeds.",
                minutes=14.0,
                study=_at_loss(0.01, _MIDDLE, 3, _METHODS),
                criteria=_CERTAIN,
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
                setting=f"{_REPLACED}: 1,000 of 3,000 images, 20 epochs after 10 on all; {_STEPS}.",
                minutes=1.0,
                study=_by_method(forgettability, _SHORT, 1, _FORGETTING, _HASTY),
                criteria=_FORGETTABLE,
            ),
            "full": Budget(
                setting=f"{_REPLACED}: 5,000 of 20,000 images, seen once per epoch; three seeds.",
                minutes=35.0,
                study=_with_agreement(_MIDDLE, 3),
                criteria=_FORGETTABLE,
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
                setting="1,000 of 6,000 images; 4 epochs before the choice, 25 after it; "
                f"{_STEPS}.",
                minutes=1.2,
                study=_by_method(entropy_subsets, _QUICK, 1, _SUBSETS, _HASTY),
                criteria=_UNCERTAIN_TEACH,
            ),
            "full": Budget(
                setting="As in the paper: 10,000 of 60,000 images, 20 epochs; two seeds.",
                is_faithful=True,
                minutes=45.0,
                study=_by_method(entropy_subsets, _FULL, 2, _SUBSETS),
                criteria=_UNCERTAIN_TEACH,
            ),
        },
    ),
)
