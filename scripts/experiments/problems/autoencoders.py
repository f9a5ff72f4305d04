"""The autoencoders of the paper on K-BFGS: models, losses, batches, and images to be had anywhere.

Shape legend: `N` images of `d` pixels each, flattened; `m` images in a mini-batch.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psgd_optim.penalty import l2_penalty

MNIST_SIZES = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)
THIN_SIZES = (784, 100, 50, 25, 6, 25, 50, 100, 784)
THIN_MNIST_SIZES = (784, 200, 100, 30, 100, 200, 784)
"""What stands for the two in quick runs."""
CURVES_SIZES = (784, 400, 200, 100, 50, 25, 6, 25, 50, 100, 200, 400, 784)
FACES_SIZES = (625, 2000, 1000, 500, 30, 500, 1000, 2000, 625)
DECAY = 1e-5
"""Rate of the L2 penalty of all three."""
_SIDE, _FACE_SIDE = 28, 25

Loss = Callable[[Tensor, Tensor], Tensor]
"""The mean over samples of a loss of outputs (m, d) and images (m, d)."""


class Autoencoder(nn.Sequential):
    """Linear layers with ReLU between them, but for a linear code and a linear output.

    Args:
        sizes: Of the layers, pixels first and last; the code is the smallest one.

    Source: S4 appendix D, with torch's own initialisation as in the released code.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers.append(nn.Linear(inputs, outputs))
            if outputs != min(sizes):
                layers.append(nn.ReLU())
        super().__init__(*layers[:-1])


def pixel_entropy(logits: Tensor, images: Tensor) -> Tensor:
    """Return the binary cross entropy of pixels in [0, 1], summed over them, for MNIST, CURVES."""
    return F.binary_cross_entropy_with_logits(logits, images, reduction="sum") / len(images)


def half_squares(outputs: Tensor, images: Tensor) -> Tensor:
    """Return half the squared errors, summed over pixels, for FACES."""
    return 0.5 * (outputs - images).square().sum() / len(images)


def shuffled_batches(images: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield one epoch of mini-batches (size, d) in a new random order; a last part is left out."""
    order = torch.randperm(len(images), generator=generator)
    for start in range(0, len(images) - size + 1, size):
        yield images[order[start : start + size]]


@torch.no_grad()
def mean_loss(model: nn.Module, images: Tensor, loss: Loss, decay: float = DECAY) -> float:
    """Return the mean loss of images (N, d) with the L2 penalty, as S4 reports it."""
    parts = [(loss(model(x), x), len(x)) for x in torch.split(images, 1000)]
    total = sum(part * count for part, count in parts) / len(images)
    return float(total + l2_penalty(model.parameters(), decay))


@torch.no_grad()
def pixel_error(model: nn.Module, images: Tensor, loss: Loss) -> float:
    """Return the mean squared error per pixel; outputs are logits if the loss takes such."""
    total = 0.0
    for x in torch.split(images, 1000):
        z = model(x)
        total += float(((z.sigmoid() if loss is pixel_entropy else z) - x).square().sum())
    return total / images.numel()


def curves(count: int, seed: int, *, width: float = 0.7, points: int = 64) -> Tensor:
    """Draw images of quadratic Bezier curves through a square, of six degrees of freedom.

    A substitute for the CURVES data, whose renderer nobody has described: absolute losses cannot be
    compared with those of papers.

    Args:
        count: How many.
        seed: Of the control points.
        width: Standard deviation of the pen in pixels.
        points: How many points of a curve are drawn.

    Returns:
        (count, 784), in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    control = 3 + 22 * torch.rand(count, 3, 2, generator=generator)
    t = torch.linspace(0, 1, points)
    weights = torch.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2])
    curve = torch.einsum("cpa,pt->cat", control, weights)  # (count, 2, points)
    distances = torch.arange(_SIDE) - curve.unsqueeze(-1)  # (count, 2, points, 28)
    rows, columns = torch.exp(-0.5 * (distances / width).square()).unbind(dim=1)
    images = torch.zeros(count, _SIDE, _SIDE)
    for k in range(points):  # not all at once, which would not fit into caches
        torch.maximum(images, rows[:, k, :, None] * columns[:, k, None, :], out=images)
    return images.flatten(1)


def smooth_fields(count: int, seed: int, *, frequencies: int = 6) -> Tensor:
    """Draw smooth 25 x 25 fields with a common bright oval, in the place of the FACES data.

    Args:
        count: How many.
        seed: Of the coefficients.
        frequencies: Cosines along each axis; the coefficients fall with the square frequency.

    Returns:
        (count, 625), each of mean 0 and variance 1. No faces: a substitute of their statistics.
    """
    generator = torch.Generator().manual_seed(seed)
    place = (torch.arange(_FACE_SIDE) + 0.5) / _FACE_SIDE
    waves = torch.cos(math.pi * torch.arange(frequencies)[:, None] * place)  # (f, 25)
    squares = torch.arange(frequencies).square()
    scale = 1 / (1 + squares[:, None] + squares)
    coefficients = torch.randn(count, frequencies, frequencies, generator=generator) * scale
    fields = torch.einsum("cfg,fy,gx->cyx", coefficients, waves, waves)
    oval = ((place[:, None] - 0.5) / 0.45) ** 2 + ((place - 0.5) / 0.35) ** 2
    fields = (fields + 2 * torch.sigmoid(8 * (1 - oval))).flatten(1)
    centred = fields - fields.mean(dim=1, keepdim=True)
    return centred / centred.std(dim=1, correction=0, keepdim=True)
