"""Training on images: a model, its mini-batches, and its error without their noise."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.data import Labelled
from experiments.problem import Problem, generator
from experiments.problems.batches import Batches
from psgd_optim.penalty import l2_penalty

Augment = Callable[[Tensor, int, torch.Generator], Tensor]
"""Changes a step's scaled images (B, C, H, W), given the step and a generator on the CPU."""

_EVALUATED = 1000
"""Images evaluated at once."""


def to_unit(images: Tensor) -> Tensor:
    """Return pixels in [0, 1]."""
    return images.float().div_(255)


def cross_entropy(logits: Tensor, labels: Tensor, step: int) -> Tensor:
    """Return the mean cross-entropy in nats, whatever the step."""
    return F.cross_entropy(logits, labels)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learned, and how the data come."""

    train: Labelled
    test: Labelled
    batch_size: int
    scale: Callable[[Tensor], Tensor] = to_unit
    """Makes of bytes (B, C, H, W) what the model takes, for training and for tests."""
    augment: Augment | None = None
    """Changes training images further."""
    loss: Callable[[Tensor, Tensor, int], Tensor] = cross_entropy
    """Of logits, labels and step; figures always have the cross-entropy."""
    sampled: int = 5000
    """Training images, the first ones, that the evaluated loss is a mean over."""


class Classification(Problem):
    """A classifier on a task.

    Args:
        model: Maps scaled images to logits, (B, classes).
        task: Data and loss.
        seed: Of the batches.
        device: Where to train.
    """

    def __init__(self, model: nn.Module, task: Task, seed: int, device: torch.device) -> None:
        self.model: nn.Module = model.to(device)
        self.parameters = list(self.model.parameters())
        self.batches = Batches(len(task.train), task.batch_size, seed)
        self.penalty = 0.0
        """Strength of an L2 penalty in the training loss, which curvature sees; 0 for none."""
        self._task, self._seed = task, seed
        self._train, self._test = task.train.to(device), task.test.to(device)
        self._start = [p.detach().clone() for p in self.parameters]

    def loss(self, step: int) -> Tensor:
        """Return the loss of a step's batch, with the penalty."""
        batch = self._train.take(self.batches.indices(step).to(self._train.labels.device))
        x = self._task.scale(batch.images)
        if self._task.augment is not None:
            x = self._task.augment(x, step, generator(self._seed, step + 1))
        loss = self._task.loss(self.model(x), batch.labels, step)
        return loss + l2_penalty(self.parameters, self.penalty) if self.penalty else loss

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits (N, classes) of bytes (N, C, H, W), as at a test."""
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            parts = [self.model(self._task.scale(part)) for part in torch.split(images, _EVALUATED)]
        self.model.train(was_training)
        return torch.cat(parts)

    def evaluate(self) -> Mapping[str, float]:
        """Return `error`, in percent of the test images, the training `loss` and `distance`.

        The distance is the 2-norm of what training has added to the parameters.
        """
        found = self.logits(self._test.images).argmax(dim=1)
        sample = self._train.take(slice(self._task.sampled))
        loss = F.cross_entropy(self.logits(sample.images), sample.labels)
        pairs = zip(self.parameters, self._start, strict=True)
        moves = [(p.detach() - old).norm() for p, old in pairs]
        return {
            "error": 100 * float((found != self._test.labels).float().mean()),
            "loss": float(loss),
            "distance": float(torch.stack(moves).norm()),
        }


class Reconstruction(Problem):
    """An autoencoder on images, with the mean squared error of its output.

    Args:
        model: Maps scaled images to images of their shape.
        task: Data; labels and loss are not looked at.
        seed: Of the batches.
        device: Where to train.
    """

    def __init__(self, model: nn.Module, task: Task, seed: int, device: torch.device) -> None:
        self.model: nn.Module = model.to(device)
        self.parameters = list(self.model.parameters())
        self._batches = Batches(len(task.train), task.batch_size, seed)
        self._scale, self._sampled = task.scale, task.sampled
        self._train, self._test = task.train.images.to(device), task.test.images.to(device)

    def loss(self, step: int) -> Tensor:
        """Return the error on a step's batch."""
        return self._error(self._train[self._batches.indices(step).to(self._train.device)])

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Return the error on training images, `loss`, and on test images, `test_loss`."""
        return {
            "loss": self._mean(self._train[: self._sampled]),
            "test_loss": self._mean(self._test[: self._sampled]),
        }

    def _mean(self, images: Tensor) -> float:
        errors = [self._error(part) * len(part) for part in torch.split(images, _EVALUATED)]
        return float(torch.stack(errors).sum()) / len(images)

    def _error(self, images: Tensor) -> Tensor:
        x = self._scale(images)
        return F.mse_loss(self.model(x), x)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Make torch's own initial values a function of a seed, and put its generator back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
