"""What one step computes for the rows of a block: functions of tensors, run eagerly or compiled.

All that chooses operations is in a `Plan`; all that changes from step to step is a tensor, or may
be one. Shape legend: a block has `B` rows of one shape, (B, *shape).
"""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from psgd_optim.averages import fold_in
from psgd_optim.criteria import Criterion, Evidence
from psgd_optim.forms.base import Preconditioner
from psgd_optim.linalg import (
    Mask,
    abs_square,
    both,
    cast,
    finite_rows,
    keep_rows,
    known,
    lift,
    per_block,
    real_product,
    row_norms,
    row_peaks,
)
from psgd_optim.schedules import Adaptive
from psgd_optim.types import Probe, State
from psgd_optim.updates import are_exact


class Order(enum.Enum):
    """When a fit comes."""

    FIRST = enum.auto()
    """Before the gradient is preconditioned."""
    LAST = enum.auto()
    """After that."""
    LATER = enum.auto()
    """After that, when the caller has time for it."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What decides which operations a step runs; blocks with equal plans and shapes run the same.

    Args:
        form: The rows' preconditioner's form.
        criterion: What `P` is fitted to.
        nesterov: Whether the step looks ahead of the gradient average.
        fits: Whether this step fits `Q`.
        order: When the fit comes.
        adaptive: The step size of `Q` that follows the whitening error, if it does.
        uses: About how often `P` is applied between two fits: all that it decides is what the
            form's operator consists of.
        measures: Whether a clip needs the updates' lengths.
    """

    form: Preconditioner
    criterion: Criterion
    nesterov: bool
    fits: bool
    order: Order
    adaptive: Adaptive | None
    uses: float = field(compare=False)
    measures: bool = False

    @property
    def needs_image(self) -> bool:
        """Whether the fit takes `P h` with the operator from before it."""
        return self.form.wants_image or self.adaptive is not None

    @property
    def reads_operator(self) -> bool:
        """Whether the step applies the operator that it finds."""
        return not self.fits or self.order is not Order.FIRST or self.needs_image


class Inputs(NamedTuple):
    """What a step reads, and writes in place, besides gradients.

    Attributes:
        state: The form's, written in a step that fits.
        extra: What is remembered by others, by name; written.
        steps: (B,), how many gradients each row has used; written.
        operator: What the form's `apply` takes, if the step reads it.
        noise: The criterion's random numbers, in a step that fits.
        draws: The form's.
        has_ramped: Whether the host knows that every average is past its ramp; of no effect in a
            graph, where it is not known that all rows take part.
    """

    state: State
    extra: State
    steps: Tensor
    operator: State
    noise: Tensor | None
    draws: State
    has_ramped: bool


class Numbers(NamedTuple):
    """What may differ from step to step, as numbers or, in a graph, 0-D tensors.

    Attributes:
        momentum: Decay of the gradient average.
        rate: Step size of `Q`.
    """

    momentum: float | Tensor
    rate: float | Tensor


class Sight(NamedTuple):
    """What a step sees of a block's gradients.

    Attributes:
        grads: (B, *shape), finite, in single precision or better; zero in rows to leave alone.
        ok: Which gradients were finite.
        active: Which rows take part.
        before: How many values are in the averages, (B,), or more of their leading axes.
        pair: The probe and its Hessian-vector product, if there is one.
        sound: Which rows of it can be used.
    """

    grads: Tensor
    ok: Mask
    active: Mask
    before: Tensor
    pair: tuple[Tensor, Tensor] | None = None
    sound: Mask = None


class Outcome(NamedTuple):
    """What a step leaves besides what it has written.

    Attributes:
        rows: (B, *shape), the preconditioned gradients; zero in rows to leave alone.
        norms: (B,), their 2-norms as plain sums of squares, which may have left the range.
        active: Which rows took part.
        sound: Which rows were finite throughout.
        operator: What `apply` takes from now on, in a step that fits.
        later: Does the fit and returns that, if the plan puts it off.
        lengths: (B,), the rows' lengths in the metric `P^-1`, if the plan measures them.
    """

    rows: Tensor
    norms: Tensor
    active: Mask
    sound: Mask
    operator: State | None
    later: Callable[[], State] | None = None
    lengths: Tensor | None = None


def step_stack(plan: Plan, inputs: Inputs, numbers: Numbers, stack: Tensor) -> Outcome:
    """Return the step of rows that have all started, and need no pair.

    Args:
        plan: What to compute.
        inputs: What to compute it with.
        numbers: The rates.
        stack: (B, *shape), the gradients.

    Returns:
        The step.
    """
    grads, ok = cleaned(lift(stack))
    before = inputs.steps.clone()
    return step_rows(plan, inputs, numbers, Sight(grads=grads, ok=ok, active=ok, before=before))


def step_list(plan: Plan, inputs: Inputs, numbers: Numbers, rows: Sequence[Tensor]) -> Outcome:
    """Return the same for gradients (*shape) that are not stacked yet."""
    return step_stack(plan, inputs, numbers, torch.stack(list(rows)))


def cleaned(grads: Tensor) -> tuple[Tensor, Mask]:
    """Return gradients with zeros in the rows that are not finite, and which rows are."""
    ok = finite_rows(grads)
    return keep_rows(ok, grads), ok


def step_rows(plan: Plan, inputs: Inputs, numbers: Numbers, sight: Sight) -> Outcome:
    """Average the gradients, fit `Q` if the plan says so, precondition, and remember.

    Args:
        plan: What to compute.
        inputs: What to compute it with; the rows' state moves on.
        numbers: The rates.
        sight: The gradients.

    Returns:
        The step.
    """
    active = sight.active
    inputs.steps.add_(1 if active is None else active)
    evidence = _averaged(inputs, numbers.momentum, sight)
    ahead = evidence.average
    if plan.nesterov:
        ahead = _between(sight.grads, ahead, numbers.momentum)
    if not plan.fits:
        plan.criterion.remember(evidence, inputs.extra, active)
        return _preconditioned(plan, inputs.operator, ahead, sight)
    learn = partial(_learn, plan, inputs, numbers.rate, evidence, sight)
    if plan.order is Order.FIRST:
        operator = learn()
        return _preconditioned(plan, operator, ahead, sight)._replace(operator=operator)
    outcome = _preconditioned(plan, inputs.operator, ahead, sight)
    if plan.order is Order.LATER:
        return outcome._replace(later=learn)
    return outcome._replace(operator=learn())


def _learn(
    plan: Plan, inputs: Inputs, rate: float | Tensor, evidence: Evidence, sight: Sight
) -> State:
    """Fit `Q`, remember what the fit must not have seen, and return what `apply` takes."""
    _fit(plan, inputs, rate, evidence, both(sight.active, sight.sound))
    plan.criterion.remember(evidence, inputs.extra, sight.active)
    return plan.form.prepare(inputs.state, plan.uses)


def _averaged(inputs: Inputs, momentum: float | Tensor, sight: Sight) -> Evidence:
    """Fold the gradients into their average, if there is one."""
    average = sight.grads
    if "momentum" in inputs.extra:
        ramp = None if sight.active is None and inputs.has_ramped else sight.before
        kept = inputs.extra["momentum"]
        average = fold_in(kept, sight.grads, ramp, sight.active, momentum)
    return Evidence(grad=sight.grads, average=average, steps=sight.before, pair=sight.pair)


def _between(grads: Tensor, average: Tensor, momentum: float | Tensor) -> Tensor:
    """Return the gradients, moved towards their average by the momentum."""
    weight = cast(momentum, grads.dtype) if isinstance(momentum, Tensor) else momentum
    return grads.lerp(average, weight)


def _direction(plan: Plan, operator: State, x: Tensor) -> Tensor:
    return plan.criterion.direction(lambda y: plan.form.apply(operator, y), x)


def _preconditioned(plan: Plan, operator: State, x: Tensor, sight: Sight) -> Outcome:
    """Return the direction for `x`, measured."""
    rows = _direction(plan, operator, x)
    norms = row_norms(rows)
    # Squares may overflow where the numbers do not.
    finite = None if are_exact(norms) else known(row_peaks(rows).isfinite())
    # Rows left alone keep their parameter too, whatever their average still holds; and an
    # average too large for P, or a P that is broken, gives no direction.
    alive = both(finite, sight.active)
    if finite is not None and sight.active is not None:
        finite = finite | ~sight.active
    return Outcome(
        rows=keep_rows(alive, rows),
        norms=keep_rows(alive, norms),
        active=sight.active,
        sound=both(sight.ok, finite),
        operator=None,
        lengths=keep_rows(alive, _lengths(x, rows)) if plan.measures else None,
    )


def _lengths(x: Tensor, rows: Tensor) -> Tensor:
    """Return `sqrt(x^T P x)` for `rows = P x`, (B,), of any size that the dtype holds."""
    # Relative to the largest moduli, so that no product leaves the range of the dtype.
    peaks = [row_peaks(y).clamp(min=torch.finfo(y.dtype).tiny) for y in (x, rows)]
    scaled = [y / per_block(peak, y) for y, peak in zip((x, rows), peaks, strict=True)]
    inner = real_product(*scaled).flatten(1).sum(dim=1)
    # Not negative for a positive P, but for rounding.
    return inner.clamp(min=0).sqrt() * peaks[0].sqrt() * peaks[1].sqrt()


def _fit(plan: Plan, inputs: Inputs, rate: float | Tensor, evidence: Evidence, rows: Mask) -> None:
    """Update `Q` of some rows."""
    form = plan.form
    probe = plan.criterion.probe(evidence, inputs.extra, inputs.noise, needs_v=form.needs_v)
    rates = rate if rows is None else rate * rows.to(probe.h.real.dtype)
    if plan.needs_image:
        image = form.apply(inputs.operator, probe.h)
        probe = Probe(h=probe.h, v=probe.v, image=image)
    if plan.adaptive is not None:
        rates = rates * _adapted(inputs.extra["whitened"], plan.adaptive, probe, rows)
    form.update(inputs.state, probe, inputs.draws, rates)


def _adapted(held: Tensor, adaptive: Adaptive, probe: Probe, rows: Mask) -> Tensor:
    """Return the part of the largest step size that the whitening error asks for, (B,)."""
    if probe.image is None:
        raise ValueError("An adaptive step size got a sample without its image P h.")
    size = abs_square(probe.image).flatten(1).mean(dim=1)
    if probe.v is not None:
        size = size / abs_square(probe.v).flatten(1).mean(dim=1)
    error = (size - 1).abs().nan_to_num(nan=1.0).clamp(max=1.0).to(held.dtype)
    # What is kept is 1 - error, so that its start at 0 is the largest error.
    held.copy_(keep_rows(rows, held.lerp(1 - error, 1 - adaptive.decay), held))
    return ((1 - held).clamp(adaptive.low, adaptive.high) / adaptive.high).to(size.dtype)
