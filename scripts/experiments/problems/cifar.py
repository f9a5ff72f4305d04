"""Networks for CIFAR-10 from S0, its scaling and its augmentation."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psgd_optim.affine import to_affine

_MEAN = (0.4914, 0.4822, 0.4465)
_STD = (0.2023, 0.1994, 0.2010)


def leaky_cnn(width: int = 96) -> nn.Module:
    """Return S0's classifier, (B, 3, 32, 32) to (B, 10): 418,858 numbers at full width.

    Args:
        width: Channels of every layer.

    Source: S0 experiment 4, by its published code: five convolutions, where the text has four.
    Deviation: matrices start normal, with the variance of one over their columns.
    """
    layers: list[nn.Module] = []
    inputs = 3
    for place in range(5):
        layers += [nn.Conv2d(inputs, width, 3), nn.LeakyReLU(0.3)]
        layers += [nn.MaxPool2d(2)] if place in {1, 3} else []
        inputs = width
    head = [nn.Flatten(), nn.Linear(9 * width, width), nn.LeakyReLU(0.3), nn.Linear(width, 10)]
    return _start(nn.Sequential(*layers, *head))


def conv_autoencoder(width: int = 32) -> nn.Module:
    """Return S0's autoencoder, (B, 3, 32, 32) to the same: 68,771 numbers at full width.

    Args:
        width: Channels of every inner layer.

    Source: S0 experiment 5. Deviation: as `leaky_cnn`.
    """
    down = [3, width, width, width]
    up = [width, width, width, 3]
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(down):
        layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.Tanh()]
    for inputs, outputs in itertools.pairwise(up):
        layers += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.Tanh()]
    return _start(nn.Sequential(*layers[:-1]))  # the output is linear


def to_signed(images: Tensor) -> Tensor:
    """Return pixels as `x / 128 - 1`."""
    return images.float().div_(128).sub_(1)


def standardised(images: Tensor) -> Tensor:
    """Return pixels with the mean and the deviation of each channel taken out."""
    mean, std = (torch.tensor(x, device=images.device).view(3, 1, 1) for x in (_MEAN, _STD))
    return (images.float() / 255 - mean) / std


def crop_and_flip(x: Tensor, step: int, noise: torch.Generator) -> Tensor:
    """Move each image by up to an eighth of its size along both axes, and mirror every other one.

    Source: S2, the standard augmentation: crops of images with a margin of 4 pixels of 32.
    """
    margin, size = x.shape[-1] // 8, x.shape[-1]
    rows, columns = torch.randint(2 * margin + 1, (2, len(x)), generator=noise).to(x.device)
    mirrored = (torch.rand(len(x), generator=noise) < 0.5).to(x.device)
    at = torch.arange(size, device=x.device)
    across = torch.where(mirrored[:, None], at.flip(0), at) + columns[:, None]  # (B, W)
    down = at + rows[:, None]  # (B, H)
    padded = F.pad(x, (margin,) * 4).movedim(1, -1)  # (B, H', W', C)
    each = torch.arange(len(x), device=x.device)[:, None, None]
    return padded[each, down[:, :, None], across[:, None, :]].movedim(-1, 1).contiguous()


def shift_and_zoom(x: Tensor, step: int, noise: torch.Generator) -> Tensor:
    """Scale each axis by up to a quarter, and shift it by up to a quarter of the image.

    Source: S0 experiment 4. Deviation: interpolated linearly; edges go on as in Keras.
    """
    zoom, shift = (0.5 * torch.rand(2, len(x), 2, generator=noise) - 0.25).to(x.device)
    maps = torch.zeros(len(x), 2, 3, device=x.device)
    maps[:, 0, 0] = 1 + zoom[:, 0]
    maps[:, 1, 1] = 1 + zoom[:, 1]
    maps[:, :, 2] = 2 * shift  # the grid is from -1 to 1
    grid = F.affine_grid(maps, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _start(model: nn.Sequential) -> nn.Module:
    """Join weights and biases, and draw the matrices anew."""
    to_affine(model)
    with torch.no_grad():
        for matrix in model.parameters():
            matrix.normal_(std=matrix.shape[1] ** -0.5)
    return model
