"""How much diagonal preconditioners lower the condition number of a Hessian (S3, figure 3).

Random sigmoid networks and logistic regressions, with inputs, weights and biases from N(0, 1) and
random labels. Hessians are exact and in double precision. One of the `C` logits is the constant 0:
with `C` free ones, the softmax, which takes no notice of what all have in common, would make every
Hessian singular.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from psgd_optim.noise import noise_generator

_REAL = torch.float64


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Sizes, which the paper does not give; the defaults are those of our smallest run."""

    inputs: int = 6
    hidden: int = 8
    """Sigmoid units; 0 for a logistic regression."""
    classes: int = 3
    examples: int = 40

    @property
    def shapes(self) -> Sequence[tuple[int, int]]:
        """Return what `[W, b]` of each layer is, outputs by inputs and one for the bias."""
        sizes = [self.inputs, *([self.hidden] if self.hidden else []), self.classes - 1]
        return [(n, m + 1) for m, n in itertools.pairwise(sizes)]


LOGISTIC_REGRESSION = Setting(hidden=0)
NETWORK = Setting()


def network_conditioning(
    seed: int, device: torch.device, setting: Setting = NETWORK
) -> dict[str, float]:
    """Return the condition numbers of a random network's Hessian; see `conditioning`."""
    return conditioning(random_hessian(seed, device, setting))


def logistic_conditioning(
    seed: int, device: torch.device, setting: Setting = LOGISTIC_REGRESSION
) -> dict[str, float]:
    """Return the condition numbers of a random logistic regression's Hessian."""
    return conditioning(random_hessian(seed, device, setting))


def conditioning(hessian: Tensor) -> dict[str, float]:
    """Return what the two diagonal preconditioners make of a condition number.

    Args:
        hessian: (N, N), symmetric.

    Returns:
        `condition`, of the Hessian; `jacobi` and `equilibration`, that of `D^-1 H` divided by it,
        with `D` of `|diag H|` and `sqrt(diag H^2)`; `negative`, the share of negative eigenvalues;
        `better`, 1 where equilibration leaves the smaller condition number, else 0.
    """
    plain = condition_number(hessian, torch.ones_like(hessian[0]))
    jacobi = condition_number(hessian, hessian.diagonal().abs()) / plain
    equilibration = condition_number(hessian, hessian.norm(dim=1)) / plain
    return {
        "condition": plain,
        "jacobi": jacobi,
        "equilibration": equilibration,
        "negative": float((torch.linalg.eigvalsh(hessian) < 0).double().mean()),
        "better": float(equilibration < jacobi),
    }


def condition_number(hessian: Tensor, scale: Tensor) -> float:
    """Return `max |e| / min |e|` of the eigenvalues of `D^-1 H`, those of `D^-1/2 H D^-1/2`.

    Args:
        hessian: (N, N), symmetric.
        scale: (N,), the positive diagonal of `D`.

    Source: S3, section 2, which measures `D^-1 H`. Deviation: by eigenvalues, which tell how a
    preconditioned step converges, not by singular values.
    """
    root = scale.rsqrt()
    sizes = torch.linalg.eigvalsh(root[:, None] * hessian * root).abs()
    return float(sizes.max() / sizes.min())


def random_hessian(seed: int, device: torch.device, setting: Setting) -> Tensor:
    """Return the Hessian (N, N) of a draw's mean cross-entropy."""
    rng = noise_generator(torch.device("cpu"), seed, 0, 0)  # the same draw on every device
    x = torch.randn(setting.examples, setting.inputs, generator=rng, dtype=_REAL)
    labels = torch.randint(setting.classes, (setting.examples,), generator=rng)
    count = sum(math.prod(shape) for shape in setting.shapes)
    theta = torch.randn(count, generator=rng, dtype=_REAL)
    loss = _loss(x.to(device), labels.to(device), setting.shapes)
    # Not torch.func.hessian: its forward mode calls torch.jit.script, which warns that it is old.
    hessian: Tensor = torch.func.jacrev(torch.func.jacrev(loss))(theta.to(device))
    return (hessian + hessian.mT) / 2  # rounding


def _loss(
    x: Tensor, labels: Tensor, shapes: Sequence[tuple[int, int]]
) -> Callable[[Tensor], Tensor]:
    """Return the loss as a function of all weights and biases in one vector."""

    def loss(theta: Tensor) -> Tensor:
        parts = torch.split(theta, [math.prod(shape) for shape in shapes])
        layers = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        y = x
        for number, layer in enumerate(layers):
            y = (y.sigmoid() if number else y) @ layer[:, :-1].mT + layer[:, -1]
        return torch.nn.functional.cross_entropy(torch.nn.functional.pad(y, (0, 1)), labels)

    return loss
