"""What a preconditioner is fitted to: each criterion turns what a step sees into a `Probe`."""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from psgd_optim.averages import fold_in
from psgd_optim.clipping import Clip, ClipElement, ClipJointRMS, ClipRMS
from psgd_optim.curvature import Exact, PairSource
from psgd_optim.linalg import Mask
from psgd_optim.noise import normal_like
from psgd_optim.types import Probe, State, expect


class Evidence(NamedTuple):
    """What one step knows of a block.

    Attributes:
        grad: (B, *shape), the gradient.
        average: (B, *shape), its average; the gradient itself when there is none.
        steps: (B,), how many gradients each row had seen before; (B, I) where the parts of a row
            count for themselves.
        pair: The probe `v` and its Hessian-vector product `h`, (B, *shape) each, in the steps that
            have one.
    """

    grad: Tensor
    average: Tensor
    steps: Tensor
    pair: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Criterion(abc.ABC):
    """What `P` is fitted to; concrete criteria are final frozen dataclasses.

    Args:
        damping: Size of the noise added to the sample, in gradient units: bounds `P` by
            `I / damping`.

    Raises:
        ValueError: If the damping is negative.
    """

    damping: float = 1e-9

    needs_momentum: ClassVar[bool] = False
    """Whether it makes no sense without a gradient average."""
    memory: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors (B, *shape) that it keeps from step to step, zero at the start."""
    default_clip: ClassVar[tuple[Clip, ...]] = ()
    """The clips that fit the size of its steps."""
    default_lr: ClassVar[float] = 1e-3
    """A step size in the units of its steps."""

    def __post_init__(self) -> None:
        if not self.damping >= 0:
            raise ValueError(
                f"{type(self).__name__} got damping = {self.damping}; give a number of at least 0."
            )

    @property
    @abc.abstractmethod
    def pairs(self) -> PairSource | None:
        """Where its Hessian-vector pairs come from, `None` if it needs none."""

    @abc.abstractmethod
    def size_sample(self, evidence: Evidence) -> Tensor:
        """Return the sample (B, *shape) whose size sets the initial scale of `Q`."""

    @abc.abstractmethod
    def draw(self, like: Tensor, generator: torch.Generator, *, needs_v: bool) -> Tensor | None:
        """Draw the random numbers of one sample.

        Args:
            like: Of the shape, dtype and device of the gradient.
            generator: On that device.
            needs_v: Whether the form must see a probe vector.

        Returns:
            Standard normal numbers like it, or `None` where the sample needs none.
        """

    @abc.abstractmethod
    def probe(
        self, evidence: Evidence, memory: State, noise: Tensor | None, *, needs_v: bool
    ) -> Probe:
        """Return the sample to fit to.

        Args:
            evidence: What this step knows.
            memory: What was remembered, by name.
            noise: What `draw` returned.
            needs_v: Whether the form must see a probe vector.

        Returns:
            The sample with its damping noise.
        """

    def remember(self, evidence: Evidence, memory: State, active: Mask) -> None:
        """Update the memory, in place, of the active rows."""
        return  # most criteria remember nothing

    @abc.abstractmethod
    def direction(self, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return the step's direction for `x` (B, *shape) by applying `P` once or more."""


@dataclass(frozen=True, kw_only=True)
class Whitening(Criterion):
    """Fits `P` to `(E[h h^H] + damping^2 I)^(-1/2)` of a sample `h`.

    Independent noise of the size of the damping is added to the sample, and relative noise at its
    rounding level (single precision or better). Damping 0 switches both off, and `P` then grows
    without end where gradients stay exactly zero.

    Source: S1 section 3.2 and S0 section III.C. A form that must see a probe `v` gets the noise
    itself, as S1 does, which makes the fit exact where only the noise is left.
    """

    @property
    def pairs(self) -> PairSource | None:
        """No pairs: the gradient is the sample."""
        return None

    @abc.abstractmethod
    def sample(self, evidence: Evidence, memory: State) -> Tensor:
        """Return the sample to whiten, (B, *shape)."""

    def size_sample(self, evidence: Evidence) -> Tensor:
        """Return the gradient."""
        return evidence.grad

    def draw(self, like: Tensor, generator: torch.Generator, *, needs_v: bool) -> Tensor | None:
        """Draw the damping noise, which is also the probe where the form needs one."""
        return normal_like(like, generator) if self.damping > 0 or needs_v else None

    def probe(
        self, evidence: Evidence, memory: State, noise: Tensor | None, *, needs_v: bool
    ) -> Probe:
        """Return the sample with its damping noise, and the noise where the form needs a probe."""
        h = self.sample(evidence, memory)
        if noise is not None and self.damping > 0:
            size = h.abs().mul_(torch.finfo(h.dtype).eps).add_(self.damping)
            h = torch.addcmul(h, size, noise)
        return Probe(h=h, v=noise if needs_v else None)

    def direction(self, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return `P x`."""
        return apply(x)


_WHITENED_CLIPS = (ClipRMS(1.1), ClipElement(10.0))


@final
@dataclass(frozen=True, kw_only=True)
class GradientWhitening(Whitening):
    """Whitens the gradient: `P = (E[g g^H] + damping^2 I)^(-1/2)`, S1's Fisher type.

    With momentum `b`, the step's root mean square is then about `sqrt((1 - b) / (1 + b))`.
    """

    default_clip: ClassVar[tuple[Clip, ...]] = _WHITENED_CLIPS

    def sample(self, evidence: Evidence, memory: State) -> Tensor:
        """Return the gradient."""
        return evidence.grad


@final
@dataclass(frozen=True, kw_only=True)
class MomentumWhitening(Whitening):
    """Whitens the averaged gradient, so that the step itself has a root mean square of 1."""

    needs_momentum: ClassVar[bool] = True
    default_clip: ClassVar[tuple[Clip, ...]] = _WHITENED_CLIPS

    def sample(self, evidence: Evidence, memory: State) -> Tensor:
        """Return the averaged gradient."""
        return evidence.average


@final
@dataclass(frozen=True, kw_only=True)
class Fisher(Whitening):
    """Whitens the gradient and applies `P` twice: `P^2 = (E[g g^H] + damping^2 I)^(-1)`.

    A natural-gradient step with the empirical Fisher matrix: its size falls as gradients grow, so
    that damping, `lr` and clips are in the units of the loss. For `P` once, use
    `GradientWhitening` with a damping.

    Source: S1 section 3.2.
    """

    def sample(self, evidence: Evidence, memory: State) -> Tensor:
        """Return the gradient."""
        return evidence.grad

    def direction(self, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return `P (P x)`."""
        return apply(apply(x))


@final
@dataclass(frozen=True, kw_only=True)
class UnbiasedFisher(Whitening):
    """Fits `P^2 / batch_size` to the inverse of the Fisher matrix of single samples, unbiased.

    The sample is `g - s + s / sqrt(batch_size)` with `s` the average of past gradients, whose
    second moment is the Fisher matrix over the batch size once `s` is the mean gradient. The
    direction is `P (P x) / batch_size`.

    Args:
        batch_size: Samples averaged in one gradient.
        decay: Of the average of past gradients, with `min(t / (t + 1), decay)` at the start.

    Raises:
        ValueError: If a number is outside its range.

    Source: S1 section 3.2; the paper gives no decay, 0.99 is ours.
    """

    batch_size: int
    decay: float = 0.99

    memory: ClassVar[tuple[str, ...]] = ("mean_grad",)

    def __post_init__(self) -> None:
        Whitening.__post_init__(self)
        if self.batch_size < 1:
            raise ValueError(
                f"UnbiasedFisher got batch_size = {self.batch_size}; give a whole number from 1 on."
            )
        if not 0 <= self.decay < 1:
            raise ValueError(f"UnbiasedFisher got decay = {self.decay}; give a number in [0, 1).")

    def sample(self, evidence: Evidence, memory: State) -> Tensor:
        """Return the centred gradient with the mean's own part."""
        mean = memory["mean_grad"]
        return evidence.grad - mean + mean / math.sqrt(self.batch_size)

    def remember(self, evidence: Evidence, memory: State, active: Mask) -> None:
        """Average the gradient."""
        fold_in(memory["mean_grad"], evidence.grad, evidence.steps, active, self.decay)

    def direction(self, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return `P (P x) / batch_size`."""
        return apply(apply(x)) / self.batch_size


@final
@dataclass(frozen=True, kw_only=True)
class Newton(Criterion):
    """Fits `P` to `|H|^-1` from Hessian-vector pairs; `H` may be indefinite.

    With noisy gradients `P` tends to `(E[H]^2 + Var)^(-1/2)`, below `|E[H]|^-1`. The step size
    `lr` is then relative: 1 is a full Newton step.

    Args:
        damping: Size of the noise `damping v'` added to `H v`, with `v'` independent of `v`: `P`
            tends to `(H^2 + damping^2 I)^(-1/2)`, at most `I / damping`. With `traditional`, the
            probe itself is added: `P` tends to `|H + damping I|^-1`, which is large where an
            eigenvalue is close to `-damping`.
        traditional: Damp as for positive semi-definite `H`.
        source: Where the pairs come from.

    Raises:
        ValueError: If the damping is negative.

    Source: S0 section III.A and III.C, S1 (7).
    """

    # The trust region of S1 4.4: where H v has been zero for long, as for a unit that never fired,
    # P is as large as the damping lets it be when the first gradient comes.
    default_clip: ClassVar[tuple[Clip, ...]] = (ClipJointRMS(0.1),)
    default_lr: ClassVar[float] = 0.1

    traditional: bool = False
    source: PairSource = Exact()  # noqa: RUF009 -- frozen and without state

    def __post_init__(self) -> None:
        Criterion.__post_init__(self)
        expect("Newton", "source", self.source, PairSource, "one such as FiniteDifference()")

    @property
    def pairs(self) -> PairSource | None:
        """The source of its pairs."""
        return self.source

    def size_sample(self, evidence: Evidence) -> Tensor:
        """Return the Hessian-vector product, of a probe with unit variance."""
        return _pair(evidence)[1]

    def draw(self, like: Tensor, generator: torch.Generator, *, needs_v: bool) -> Tensor | None:
        """Draw the damping noise, unless the probe is to be it."""
        return normal_like(like, generator) if self.damping > 0 and not self.traditional else None

    def probe(
        self, evidence: Evidence, memory: State, noise: Tensor | None, *, needs_v: bool
    ) -> Probe:
        """Return the pair, damped; every form sees the probe."""
        v, h = _pair(evidence)
        added = v if self.traditional else noise
        if self.damping > 0 and added is not None:
            h = h + self.damping * added
        return Probe(h=h, v=v)

    def direction(self, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return `P x`."""
        return apply(x)


def _pair(evidence: Evidence) -> tuple[Tensor, Tensor]:
    if evidence.pair is None:
        raise ValueError("The Newton criterion got no pair in a step that fits Q.")
    return evidence.pair
