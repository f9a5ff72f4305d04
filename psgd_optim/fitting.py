"""When and how the preconditioner is fitted: its step size, gate, order, start and limits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from psgd_optim.noise import coin
from psgd_optim.schedules import Anneal, value_at
from psgd_optim.types import Rate

_GOLDEN = (5**0.5 - 1) / 2

STRETCH = 64
"""Steps for which `Fitting.uses` is the same; many enough to average over a gate that flips."""


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """How the preconditioner is fitted.

    Args:
        precond_lr: Step size of `Q` in [0, 1), dimensionless; a number, a function of the step, or
            `Adaptive`.
        gate: Probability that a step fits `Q`; a number or a function of the step.
        update_first: Precondition a gradient with the `Q` that has already seen it (S1's order)
            rather than with the previous one.
        overlap: Precondition with the previous `Q`, whatever `update_first` says, and fit the next
            one beside what follows the step, such as the next forward and backward pass: in a
            thread of the optimizer's own on a CPU, on a stream of its own on CUDA. Every bit is
            that of `update_first = False`. Until the next step, the gradients and pairs that are
            fitted to take memory; call `state_dict` to see the state, which waits for the fit;
            and an error in it is raised by the next step, or by whatever waits for it. It saves
            time only where a processor, or part of the device, would idle.
        spread: Each block has a gate of its own, with the same chance: the fits of different shapes
            fall on different steps, and no step takes much longer than another.
        init_scale: `Q` starts as this times the identity; `None` takes the scale of each
            parameter's first gradient.
        seed: Of the gate's coin and of all noise.
        max_memory: Largest memory of the optimizer in bytes, its state and the products `P` that it
            keeps between fits; a plan above it is refused before anything is allocated.

    Raises:
        ValueError: If a number is outside its range.

    Source: S0 sections V.A and V.C for `overlap`: "updating preconditioner and preconditioning
    gradient can be executed in parallel as the preconditioner from last iteration is used".
    """

    # `train_lm.py embedded` ends at a validation loss of 1.342 with it, and at 1.402 with
    # `--optim.precond-lr 0.1`, which is 0.1 throughout; 0.5 to 0.9 do about equally well.
    precond_lr: Rate = Anneal(0.7, 0.1, flat=0)
    gate: Rate = Anneal(1.0, 0.03)
    update_first: bool = True
    # Off: where other work took a good part of two cores, loops of a GPT with 0.8 M parameters took
    # 0.96 to 1.06 of their time with it at gate 1.0 (one thread), and 1.01 to 1.03 at gate 0.1.
    overlap: bool = False
    spread: bool = False
    init_scale: float | None = None
    seed: int = 0
    max_memory: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= value_at(self.precond_lr, 0) < 1:
            raise ValueError(
                f"Fitting got precond_lr = {self.precond_lr}; give a number in [0, 1) or a "
                "function of the step with such values."
            )
        if not callable(self.gate) and not 0 <= self.gate <= 1:
            raise ValueError(
                f"Fitting got gate = {self.gate}; give a probability in [0, 1] or a function of "
                "the step."
            )
        if not (isinstance(self.seed, int) and 0 <= self.seed < 2**63):
            raise ValueError(f"Fitting got seed = {self.seed}; give a whole number below 2^63.")
        if self.init_scale is not None and not self.init_scale > 0:
            raise ValueError(
                f"Fitting got init_scale = {self.init_scale}; give a number above 0, or None to "
                "take the scale of the first gradient."
            )
        if not self.max_memory > 0:
            raise ValueError(
                f"Fitting got max_memory = {self.max_memory}; give a number of bytes above 0."
            )

    @property
    def fits_first(self) -> bool:
        """Whether a gradient is preconditioned with the `Q` that has already seen it."""
        return self.update_first and not self.overlap

    def rate(self, seed: int, step: int, block: int = 0) -> float:
        """Return the step size of `Q` in a step, 0 when the gate is closed.

        Args:
            seed: Of the gate's coin.
            step: Counted from 0.
            block: The block's place among all, which matters if the fits are spread.

        Returns:
            The same number for the same arguments.

        Raises:
            ValueError: If a schedule leaves its range.
        """
        # A shift by multiples of the golden ratio gives each block a uniform coin of its own, and
        # leaves as even a share of them below the gate's value as can be.
        shift = block * _GOLDEN if self.spread else 0.0
        if (coin(seed, step) + shift) % 1.0 >= value_at(self.gate, step):
            return 0.0
        rate = value_at(self.precond_lr, step)
        if not 0 <= rate < 1:
            raise ValueError(
                f"precond_lr gave {rate} at step {step}; give a function with values in [0, 1)."
            )
        return rate

    @property
    def most_uses(self) -> float:
        """About how often `P` is applied per fit, at most: without end if the gate is scheduled."""
        return math.inf if callable(self.gate) else self.uses(0)

    def uses(self, step: int) -> float:
        """Return about how often `P` is applied per fit, by the gate of past steps: a power of two.

        It is the same for every step of a stretch, so that a resumed run computes what it would
        have computed: which products are formed depends on it, and so does rounding.

        Args:
            step: Counted from 0.
        """
        first = step - step % STRETCH
        past = range(first - STRETCH, first) if first else range(1)
        mean = sum(value_at(self.gate, s) for s in past) / len(past)
        return 2.0 ** math.floor(math.log2(1 + 1 / max(mean, 1 / STRETCH)))


def initial_scale(grad: Tensor, peak: Tensor, damping: float) -> Tensor:
    """Return the scale `s` with which `P = s^2 I` brings each parameter's gradient to unit size.

    `s = (mean |g|^4 + damping^4)^(-1/8)`, computed relative to the largest entry so that no
    power leaves the range of the dtype.

    Args:
        grad: (B, *shape), finite.
        peak: (B,), the largest modulus of each gradient; rows with 0 get the scale of 1.
        damping: In gradient units.

    Returns:
        (B,).

    Source: design formulas 8.0. Deviation: per parameter, not shared by all.
    """
    some = peak > 0
    peak = torch.where(some, peak, 1.0)
    relative = (grad.flatten(1).abs() / peak[:, None]).square().square().mean(dim=1)
    level = peak.clamp(min=damping)
    # (mean |g|^4 + damping^4)^(1/4), with both terms at most 1 after the division by `level`.
    size = level * (relative * (peak / level) ** 4 + (damping / level) ** 4) ** 0.25
    return torch.where(some, size.rsqrt(), 1.0)
