"""Convolutional classifiers of digits, with weights and biases as one matrix per layer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from experiments.data import Labelled
from experiments.problems.images import Task
from psgd_optim.affine import to_affine


def lenet5() -> nn.Module:
    """Return LeNet5 without padding, (B, 1, 28, 28) to (B, 10): 44,426 numbers in five matrices.

    All of them, the biases included, start normal with a standard deviation of 0.1.

    Source: S1's published code. Deviation: the matrices are transposed, one row per output.
    """
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )
    return _start(to_affine(model), lambda matrix: 0.1)


def tanh_cnn(width: int = 32) -> nn.Module:
    """Return S0's classifier of digits, (B, 1, 32, 32) to (B, 10): 36,074 numbers at full width.

    Args:
        width: Channels of every layer.

    Source: S0 experiment 3; matrices start normal, with the variance of one over their columns.
    """
    model = nn.Sequential(
        nn.Conv2d(1, width, 3),
        nn.Tanh(),
        nn.Conv2d(width, width, 3),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(width, width, 3),
        nn.Tanh(),
        nn.Conv2d(width, width, 3),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(25 * width, 10),
    )
    return _start(to_affine(model), lambda matrix: matrix.shape[1] ** -0.5)


def nested_digits(train: Labelled, test: Labelled, batch_size: int) -> Task:
    """Return the digits at random places of a background of 32 x 32; those of the test centred.

    Args:
        train: (N, 1, 28, 28).
        test: As those.
        batch_size: Of a step.

    Source: S0 experiment 3.
    """
    return Task(train=train, test=test, batch_size=batch_size, scale=_centred, augment=_displace)


def _centred(images: Tensor) -> Tensor:
    """Return bytes (B, 1, 28, 28) as (B, 1, 32, 32) in [-1, 1], with an equal margin."""
    return nn.functional.pad(images.float() / 127.5 - 1, (2, 2, 2, 2), value=-1.0)


def _displace(x: Tensor, step: int, noise: torch.Generator) -> Tensor:
    """Move each image by up to 2 pixels along both axes: the margin is background."""
    places = torch.randint(-2, 3, (2, len(x)), generator=noise).to(x.device)
    at = torch.arange(x.shape[-1], device=x.device)
    rows, columns = ((at - place[:, None]) % len(at) for place in places)  # (B, 32) each
    each = torch.arange(len(x), device=x.device)[:, None, None]
    return x[each, 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


@torch.no_grad()
def _start(model: nn.Module, size: Callable[[Tensor], float]) -> nn.Module:
    """Draw every matrix anew, with a standard deviation that depends on its shape."""
    for matrix in model.parameters():
        matrix.normal_(std=size(matrix))
    return model
