"""AlexNet on eight matrices `[W, b]`, with a response normalisation that differentiates twice."""

from typing import final

from torch import Tensor, nn

from psgd_optim.affine import to_affine

CLASSES = 1000


@final
class EnergyNorm(nn.Module):
    """Divides by a power of the energy of all channels, `(2 + a n mean(x^2))^0.75`.

    AlexNet's own normalisation sums the energy of n = 5 neighbouring channels, at a = 1e-4; here
    the mean over all channels stands for that of the neighbours.

    Source: S1 section 6.3.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same."""
        energy = 5 * x.square().mean(dim=1, keepdim=True)
        normalised: Tensor = x / (2 + 1e-4 * energy) ** 0.75
        return normalised


def alexnet(scale: float = 1.0, image: int = 227, classes: int = CLASSES) -> nn.Module:
    """Return AlexNet on one group, (B, 3, image, image) to (B, classes).

    Args:
        scale: Of the number of channels and units.
        image: Pixels along an edge; 227 leaves 6 x 6 features to the linear layers.
        classes: Of the output.

    Source: S1 section 6.3. Deviations: every convolution has a bias, where the paper's fifth
    matrix has no column for one; no dropout.
    """
    c1, c2, c3, units = (max(1, round(scale * n)) for n in (96, 256, 384, 4096))
    side = _pooled(_pooled(_pooled((image - 11) // 4 + 1)))
    model = nn.Sequential(
        *_stage(nn.Conv2d(3, c1, 11, 4), EnergyNorm(), nn.MaxPool2d(3, 2)),
        *_stage(nn.Conv2d(c1, c2, 5, padding=2), EnergyNorm(), nn.MaxPool2d(3, 2)),
        *_stage(nn.Conv2d(c2, c3, 3, padding=1)),
        *_stage(nn.Conv2d(c3, c3, 3, padding=1)),
        *_stage(nn.Conv2d(c3, c2, 3, padding=1), nn.MaxPool2d(3, 2)),
        nn.Flatten(),
        *_stage(nn.Linear(c2 * side * side, units)),
        *_stage(nn.Linear(units, units)),
        nn.Linear(units, classes),
    )
    return to_affine(model)


def _stage(layer: nn.Module, *after: nn.Module) -> list[nn.Module]:
    return [layer, nn.ReLU(), *after]


def _pooled(side: int) -> int:
    """Return the edge of a map after pooling of 3 pixels in steps of 2."""
    return (side - 3) // 2 + 1
