"""What spoils training images or labels, each a function of a seed."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.data import Labelled
from experiments.problem import generator
from experiments.problems.images import Augment

CLASSES = 10
FLOOR = 1e-8
"""Of the probabilities that confidence is rewarded by, as in the code of the CORES loss."""
Loss = Callable[[Tensor, Tensor, int], Tensor]


def imbalanced(data: Labelled, seed: int, share: float = 0.1) -> Labelled:
    """Return the data with a share alone of the images of half of the classes, drawn at random.

    Source: S2, class-imbalanced CIFAR-10.
    """
    draw = generator(seed)
    few = torch.randperm(CLASSES, generator=draw)[: CLASSES // 2]
    order = torch.rand(len(data), generator=draw)
    kept = torch.ones(len(data), dtype=torch.bool)
    for label in few:
        of_class = (data.labels == label).nonzero()[:, 0]
        count = round(share * len(of_class))
        kept[of_class[order[of_class].argsort()[count:]]] = False
    return data.take(kept)


def noisy_labels(data: Labelled, seed: int, rate: float = 0.6) -> Labelled:
    """Return the data with wrong labels that depend on the image.

    An image keeps its label with probability 1 - q, with q normal around the rate, deviation 0.1;
    otherwise it gets another one from a softmax of a random linear map of its pixels.

    Source: S2's published code for noisy labels (instance-dependent noise).
    """
    draw = generator(seed)
    count = len(data)
    q = torch.randn(count, generator=draw).mul_(0.1).add_(rate).clamp_(0, 1)
    pixels = data.images.flatten(1).float()
    scores = pixels @ torch.randn(pixels.shape[1], CLASSES, generator=draw)
    own = data.labels[:, None]
    chances = scores.scatter_(1, own, -torch.inf).softmax(dim=1) * q[:, None]
    chances.scatter_(1, own, (1 - q)[:, None])
    return replace(data, labels=torch.multinomial(chances, 1, generator=draw)[:, 0])


def class_pattern(data: Labelled, seed: int, size: float = 8.0) -> Labelled:
    """Return the data with one faint pattern per class, of plus or minus so many levels of 256.

    A model that reads the pattern knows the label without looking at the image. It stands for
    NTGA's perturbations, which are not to be had.
    """
    shape = (CLASSES, *data.images.shape[1:])
    signs = torch.randint(2, shape, generator=generator(seed)) * 2 - 1
    spoilt = data.images + size * signs[data.labels]
    return replace(data, images=spoilt.clamp(0, 255).to(torch.uint8))


def blurred_until(steps: int, augment: Augment) -> Augment:
    """Return an augmentation after which images are blurred, in the first so many steps.

    A blurred image has been shrunk to a quarter of its edge and enlarged again.

    Source: S2, blur deficit.
    """
    shrink = nn.Upsample(scale_factor=0.25, mode="bilinear", align_corners=False)
    enlarge = nn.Upsample(scale_factor=4.0, mode="bilinear", align_corners=False)

    def change(x: Tensor, step: int, noise: torch.Generator) -> Tensor:
        x = augment(x, step, noise)
        blurred: Tensor = enlarge(shrink(x)) if step < steps else x
        return blurred

    return change


def sieved_loss(prior: Tensor, ramp: tuple[int, int], sieve: int, strength: float = 2.0) -> Loss:
    """Return a loss for noisy labels that rewards confidence, and later leaves out images.

    With `l_j = -log p_j` and the label y, an image costs `l_y - b sum_j prior_j m_j`, with
    `m_j = -log(p_j + 1e-8)`; b grows from 0 to the strength between two steps. After the sieve is
    put in, images with `l_y` above the mean of all `m_j` count as mislabelled, and are left out of
    the mean. Without the floor the loss falls without end once b is above 1: a network that is ever
    surer of the same class, whatever the image, gains from it.

    Args:
        prior: (classes,), the shares of the labels.
        ramp: The two steps; epochs 10 and 40 of 100 in the source.
        sieve: The step from which on the sieve is in; epoch 30 there.
        strength: The end of b.

    Source: S2's published code for noisy labels, a loss of the CORES type.
    """
    first, last = ramp

    def loss(logits: Tensor, labels: Tensor, step: int) -> Tensor:
        own = F.cross_entropy(logits, labels, reduction="none")
        bounded = -(logits.softmax(dim=1) + FLOOR).log()  # (B, classes)
        b = strength * min(max((step - first) / max(last - first, 1), 0.0), 1.0)
        each = own - b * (bounded @ prior.to(bounded.device))
        kept = torch.ones_like(own, dtype=torch.bool)
        if step >= sieve:
            kept = own <= bounded.mean(dim=1)
        return (each * kept).sum() / kept.sum().clamp(min=1)

    return loss
