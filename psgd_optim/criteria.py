"""What a preconditioner is fitted to: each criterion turns a gradient into a `Probe`."""

import abc
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from psgd_optim.types import Probe


@dataclass(frozen=True, kw_only=True)
class Whitening(abc.ABC):
    """Fits `P` to `(E[h h^H] + damping^2 I)^(-1/2)` of a sample `h`.

    Args:
        damping: Standard deviation of the independent noise added to the sample, in gradient
            units: bounds `P` by `I / damping`. A relative noise at the rounding level of the
            sample as it is computed (single precision or better) comes on top. 0 switches both
            off, and `P` then grows without end where gradients stay exactly zero.

    Raises:
        ValueError: If the damping is negative.

    Source: S1 section 3.2 and S0 section III.C (the non-convexity compatible damping).
    """

    damping: float = 1e-9

    needs_momentum: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.damping >= 0:
            raise ValueError(
                f"{type(self).__name__} got damping = {self.damping}; give a number of at least 0."
            )

    @abc.abstractmethod
    def sample(self, grad: Tensor, momentum: Tensor) -> Tensor:
        """Return the sample to whiten, (B, *shape)."""

    def probe(
        self, grad: Tensor, momentum: Tensor, generator: torch.Generator, *, needs_v: bool
    ) -> Probe:
        """Return the sample with its damping noise.

        Args:
            grad: (B, *shape), the gradient.
            momentum: (B, *shape), its average; the gradient itself when there is none.
            generator: For the noise, on the device of the gradient.
            needs_v: Whether the form must see a probe vector.

        Returns:
            The sample, and a probe vector independent of it where the form needs one.
        """
        h = self.sample(grad, momentum)
        if self.damping > 0:
            size = self.damping + torch.finfo(h.dtype).eps * h.abs()
            h = h + size * _noise_like(h, generator)
        return Probe(h=h, v=_noise_like(h, generator) if needs_v else None)


@final
@dataclass(frozen=True, kw_only=True)
class GradientWhitening(Whitening):
    """Whitens the gradient: `P = (E[g g^H])^(-1/2)`.

    With momentum `b`, the step's root mean square is then about `sqrt((1 - b) / (1 + b))`.
    """

    def sample(self, grad: Tensor, momentum: Tensor) -> Tensor:
        """Return the gradient."""
        return grad


@final
@dataclass(frozen=True, kw_only=True)
class MomentumWhitening(Whitening):
    """Whitens the averaged gradient, so that the step itself has a root mean square of 1."""

    needs_momentum: ClassVar[bool] = True

    def sample(self, grad: Tensor, momentum: Tensor) -> Tensor:
        """Return the averaged gradient."""
        return momentum


def _noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
