"""Autoencoders in training: mini-batches, figures, and the two papers' networks.

Shape legend: `N` images of `d` pixels each, flattened.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiments.data import mnist
from experiments.problem import Problem
from experiments.problems.autoencoders import (
    DECAY,
    Autoencoder,
    Loss,
    curves,
    mean_loss,
    pixel_entropy,
    pixel_error,
    smooth_fields,
)
from experiments.problems.batches import Batches
from experiments.problems.images import seeded, to_unit
from psgd_optim.affine import to_affine

_INCOMING = 15  # weights of a unit that are not zero at the start


@dataclass(frozen=True)
class Images:
    """Images to train on and others to test with, (N, d) each."""

    train: Tensor
    test: Tensor


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained and how."""

    sizes: Sequence[int]
    """Of the layers."""
    batch_size: int
    network: Callable[[Sequence[int]], nn.Module] = Autoencoder
    loss: Loss = pixel_entropy
    decay: float = DECAY
    """Rate of the L2 penalty, which is no part of a step's loss: optimizers are told of it."""


class Autoencoding(Problem):
    """An autoencoder on images.

    Args:
        recipe: Network, batches and loss.
        images: Training and test images.
        seed: Of the start and of the batches.
        device: Where to train.
    """

    def __init__(self, recipe: Recipe, images: Images, seed: int, device: torch.device) -> None:
        with seeded(seed):
            self.model: nn.Module = recipe.network(recipe.sizes).to(device)
        self.parameters = list(self.model.parameters())
        self.recipe = recipe
        self.batches = Batches(len(images.train), recipe.batch_size, seed)
        self._train, self._test = images.train.to(device), images.test.to(device)

    def loss(self, step: int) -> Tensor:
        """Return the loss of a step's batch, without the penalty."""
        x = self._train[self.batches.indices(step).to(self._train.device)]
        return self.recipe.loss(self.model(x), x)

    def epoch(self) -> Iterator[Callable[[], Tensor]]:
        """Yield functions that return the losses of the first epoch's batches."""
        return (functools.partial(self.loss, step) for step in range(self.batches.per_epoch))

    def evaluate(self) -> Mapping[str, float]:
        """Return `loss` and `test_loss`, with the penalty, and `test_error`, squares per pixel."""
        recipe = self.recipe
        return {
            "loss": mean_loss(self.model, self._train, recipe.loss, recipe.decay),
            "test_loss": mean_loss(self.model, self._test, recipe.loss, recipe.decay),
            "test_error": pixel_error(self.model, self._test, recipe.loss),
        }


class SigmoidAutoencoder(nn.Sequential):
    """Linear layers with sigmoids between them, but for a linear code, and logits as output.

    Every unit starts with 15 weights from N(0, 1), or as many as it has inputs; the others and the
    biases are zero.

    Args:
        sizes: Of the layers, pixels first and last; the code is the smallest one.

    Source: S3, section 7, which takes the networks and the start of Martens (2010).
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers.append(_sparse_linear(inputs, outputs))
            if outputs != min(sizes):
                layers.append(nn.Sigmoid())
        super().__init__(*layers[:-1])


@torch.no_grad()
def sigmoid_pixels(sizes: Sequence[int]) -> nn.Module:
    """Return an autoencoder with a sigmoid after every layer, the output too.

    Every layer is a matrix `[W, b]`, uniform within `sqrt(6 / (inputs + outputs + 1))` of 0.

    Args:
        sizes: Of the layers, pixels first and last.

    Source: S1's published comparison with KFAC.
    """
    pairs = itertools.pairwise(sizes)
    model = nn.Sequential(*(m for a, b in pairs for m in (nn.Linear(a, b), nn.Sigmoid())))
    to_affine(model)
    for matrix in model.parameters():
        bound = (6 / sum(matrix.shape)) ** 0.5
        matrix.uniform_(-bound, bound)
    return model


@torch.no_grad()
def _sparse_linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    few = min(_INCOMING, inputs)
    places = torch.rand(outputs, inputs).argsort(dim=1)[:, :few]
    layer.weight.zero_().scatter_(1, places, torch.randn(outputs, few))
    layer.bias.zero_()
    return layer


@functools.lru_cache(maxsize=2)
def curves_images(count: int) -> Images:
    """Return so many curves, and a quarter as many others for tests."""
    return Images(curves(count, seed=1), curves(count // 4, seed=2))


@functools.lru_cache(maxsize=1)
def face_like_images(count: int) -> Images:
    """Return so many smooth fields, and a quarter as many others for tests."""
    return Images(smooth_fields(count, seed=1), smooth_fields(count // 4, seed=2))


@functools.lru_cache(maxsize=1)
def mnist_images(count: int) -> Images:
    """Return the first so many digits of MNIST, and a sixth as many for tests.

    Raises:
        InputError: If the data are not there.
    """
    train = to_unit(mnist("train").images[:count])
    return Images(train.flatten(1), to_unit(mnist("t10k").images[: count // 6]).flatten(1))
