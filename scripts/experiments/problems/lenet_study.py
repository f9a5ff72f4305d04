"""What a trained LeNet5 knows of its training images: certainty, forgetting, which ones matter."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.data import Labelled, mnist
from experiments.problems.confidence import Forgetting, entropy, margin, spearman
from experiments.problems.images import Classification, Task, seeded
from experiments.problems.lenet import lenet5
from experiments.training import Method, train

_BATCH = 64
_LOOK = 10
"""Steps between two looks at the training loss."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is trained on."""

    images: int
    """Training images, the first ones of MNIST."""
    subset: int
    """Of these, how many a subset has."""
    epochs: int
    """Passes over all images."""
    subset_epochs: int
    """Passes over a subset."""


@dataclass(frozen=True)
class Trained:
    """A model and what was seen while it was trained."""

    problem: Classification
    images: Labelled
    forgetting: Forgetting

    def logits(self) -> Tensor:
        """Return those of the training images, (N, 10), on the CPU."""
        return self.problem.logits(self.images.images.to(self.problem.parameters[0].device)).cpu()

    def loss(self) -> float:
        """Return that of the training images."""
        return float(F.cross_entropy(self.logits(), self.images.labels))


def trained(
    method: Method,
    images: Labelled,
    epochs: int,
    seed: int,
    at: torch.device,
    until: float = 0.0,
) -> Trained:
    """Train LeNet5, and look after every epoch at which images it classifies rightly.

    Args:
        method: How to step.
        images: What to train on.
        epochs: Passes over them, at most.
        seed: Of start, batches and optimizer.
        at: Where to train.
        until: Loss of the training images at which training ends before.
    """
    with seeded(seed):
        model = lenet5()
    task = Task(train=images, test=mnist("t10k"), batch_size=_BATCH)
    problem = Classification(model, task, seed, at)
    seen = Trained(problem, images, Forgetting(len(images)))

    def look(done: int) -> None:
        if done % problem.batches.per_epoch == 0:
            seen.forgetting.see(seen.logits().argmax(dim=1) == images.labels)

    steps = epochs * problem.batches.per_epoch
    for done, _ in train(problem, method, method.rates[0], seed, steps):
        look(done)
        if until > 0 and done % _LOOK == 0 and seen.loss() <= until:
            break
    return seen


def certainty(
    method: Method, sizes: Sizes, until: float, seed: int, device: torch.device
) -> Mapping[str, float]:
    """Return entropies and margins of the test images, once the training loss is low enough.

    A network is surer the lower its training loss is: methods are compared at the same one.

    Source: S2, Table 6. Deviation: there after as many epochs, whatever the loss.
    """
    found = trained(method, _digits(sizes), sizes.epochs, seed, device, until)
    logits = found.problem.logits(mnist("t10k").images.to(device)).cpu()
    figures = {**found.problem.evaluate(), "loss": found.loss()}
    for name, values in (("entropy", entropy(logits)), ("margin", margin(logits))):
        figures |= {f"{name}_min": float(values.min()), name: float(values.mean())}
        figures[f"{name}_max"] = float(values.max())
    return figures


def forgettability(
    method: Method, sizes: Sizes, seed: int, device: torch.device
) -> Mapping[str, float]:
    """Return the error after training on the most forgettable images alone, and on all.

    Source: S2, Tables 7 and 10.
    """
    images = _digits(sizes)
    found = trained(method, images, sizes.epochs, seed, device)
    scores = found.forgetting.scores()
    chosen = scores.argsort(descending=True, stable=True)[: sizes.subset]
    again = trained(method, images.take(chosen), sizes.subset_epochs, seed, device)
    return {
        "error": found.problem.evaluate()["error"],
        "error_forgettable": again.problem.evaluate()["error"],
        "forgotten": 100 * float((found.forgetting.events() > 0).float().mean()),
        "correlation": spearman(entropy(found.logits()), scores),
    }


def agreement(
    first: Method, second: Method, sizes: Sizes, seed: int, device: torch.device
) -> Mapping[str, float]:
    """Return the rank correlation of two methods' forgetting. Source: S2 section 4.4."""
    images = _digits(sizes)
    counts = [
        trained(method, images, sizes.epochs, seed, device).forgetting.scores()
        for method in (first, second)
    ]
    return {"correlation": spearman(*counts)}


def entropy_subsets(
    method: Method, sizes: Sizes, seed: int, device: torch.device
) -> Mapping[str, float]:
    """Return errors and distances after training on the most and the least certain images.

    Source: S2, Table 11.
    """
    images = _digits(sizes)
    oracle = trained(method, images, sizes.epochs, seed, device)
    order = entropy(oracle.logits()).argsort()
    parts = {"low": order[: sizes.subset], "high": order[-sizes.subset :]}
    figures = _named(oracle.problem.evaluate(), "full")
    for name, part in parts.items():
        model = trained(method, images.take(part), sizes.subset_epochs, seed, device)
        figures |= _named(model.problem.evaluate(), name)
    figures["gap"] = figures["error_low"] - figures["error_high"]
    return figures


def _named(figures: Mapping[str, float], end: str) -> dict[str, float]:
    return {f"{name}_{end}": figures[name] for name in ("error", "distance")}


def _digits(sizes: Sizes) -> Labelled:
    return mnist("train").take(slice(sizes.images))
