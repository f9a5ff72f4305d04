"""ResNet-18 for small images, of any width, with or without shortcuts."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_ROUND = 2.0**-23
"""Size of the bend of `SoftLeakyReLU`."""


class SoftLeakyReLU(nn.Module):
    """`r(x) = (1 - a) x + a sqrt(x^2 + e^2) - a e`: slopes 0.02 and 1, with a rounded bend.

    Source: S2's published code, with a = 0.49 and e = 2^-23; slope 1 - 2a on the left. Scaled by
    nothing: for large x it is x.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map elementwise."""
        # e is below the rounding of x: a root of x^2 + e^2, not |x|, for its second derivative.
        return 0.51 * x + 0.49 * (torch.sqrt(x * x + _ROUND**2) - _ROUND)


class Residual(nn.Module):
    """Two convolutions with batch normalisation, around which the input may pass.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Of the first convolution.
        has_shortcut: Whether the input, or a 1 x 1 convolution of it, is added to the output.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, has_shortcut: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            SoftLeakyReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module | None = None
        if has_shortcut:
            same = stride == 1 and inputs == outputs
            self.shortcut = nn.Identity() if same else _project(inputs, outputs, stride)
        self.bend = SoftLeakyReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        y = self.body(x)
        out: Tensor = self.bend(y if self.shortcut is None else y + self.shortcut(x))
        return out


def resnet(
    width: int = 64, blocks: Sequence[int] = (2, 2, 2, 2), *, has_shortcuts: bool = True
) -> nn.Module:
    """Return the ResNet for images of 32 x 32, (B, 3, H, W) to (B, 10).

    Args:
        width: Channels of the first stage; every further one has twice as many.
        blocks: Residual blocks of each stage; two in each of four are ResNet-18.
        has_shortcuts: Whether inputs are added to the outputs of blocks.

    Source: S2 section 4 and its published code: 11,173,962 numbers with shortcuts.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        SoftLeakyReLU(),
    ]
    inputs = width
    for stage, count in enumerate(blocks):
        for i in range(count):
            outputs, stride = width << stage, 2 if stage > 0 and i == 0 else 1
            layers.append(Residual(inputs, outputs, stride, has_shortcut=has_shortcuts))
            inputs = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10)]
    return nn.Sequential(*layers)


def _project(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
