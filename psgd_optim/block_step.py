"""What one step does to one block: start, average, fit, precondition."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from psgd_optim.averages import fold_in
from psgd_optim.blocks import Block
from psgd_optim.criteria import Criterion, Evidence
from psgd_optim.curvature import Pairs
from psgd_optim.fitting import Fitting, initial_scale
from psgd_optim.linalg import abs_square, finite_rows, keep_rows, row_peaks
from psgd_optim.schedules import Adaptive
from psgd_optim.types import Probe


@dataclass(frozen=True, kw_only=True)
class StepRules:
    """What a block's step needs besides the block.

    Args:
        criterion: What `P` is fitted to.
        fitting: How.
        rate: Step size of `Q`, 0 in a step that does not fit it.
        momentum: Decay of the gradient average.
        nesterov: Whether the step looks ahead of the average.
        pairs: Hessian-vector pairs, in the steps that have some.
        uses: About how often `P` is applied between two fits.
        generator: Makes the generator of the block's noise in this step.
    """

    criterion: Criterion
    fitting: Fitting
    rate: float
    momentum: float
    nesterov: bool
    pairs: Pairs | None
    uses: float
    generator: Callable[[], torch.Generator]


def precondition(block: Block, rules: StepRules) -> tuple[Tensor, Tensor]:
    """Return a block's preconditioned gradients, and which rows are finite throughout.

    Args:
        block: The rows to step; their state moves on.
        rules: How.

    Returns:
        (B, *shape), zero in rows to leave alone, and (B,).
    """
    grads = block.gather_gradients()
    ok = finite_rows(grads)
    grads = keep_rows(ok, grads)
    pair, sound = _pair(block, rules, grads)
    # Without a given scale, a row may have to wait for a pair to start from.
    waits = rules.criterion.pairs is not None and rules.fitting.init_scale is None
    active = ok
    if block.pending:
        ready = row_peaks(grads) > 0
        active = ok & ((block.steps > 0) | (ready & sound if waits else ready))
    before = block.catch_up(rules.momentum)
    evidence = Evidence(grad=grads, average=grads, steps=before, pair=pair)
    if block.pending and not (waits and pair is None):
        _start(block, rules, evidence, active)
    block.steps += active
    weight = active.to(block.steps.dtype)
    if "momentum" in block.extra:
        average = fold_in(block.extra["momentum"], grads, before, weight, rules.momentum)
        evidence = Evidence(grad=grads, average=average, steps=before, pair=pair)
    ahead = grads.lerp(evidence.average, rules.momentum) if rules.nesterov else evidence.average
    first = rules.fitting.update_first
    update = None if first else _direction(block, rules, ahead)
    if rules.rate:
        _fit(block, rules, evidence, active & sound)
    rules.criterion.remember(evidence, block.extra, weight)
    update = _direction(block, rules, ahead) if update is None else update
    # Rows left alone keep their parameter too, whatever their average still holds; and an
    # average too large for P, or a P that is broken, gives no direction.
    sound = ok & (finite_rows(update) | ~active)
    return keep_rows(sound & active, update), sound


def _direction(block: Block, rules: StepRules, x: Tensor) -> Tensor:
    operator = block.operator(rules.uses)
    return rules.criterion.direction(lambda y: block.form.apply(operator, y), x)


def _pair(
    block: Block, rules: StepRules, grads: Tensor
) -> tuple[tuple[Tensor, Tensor] | None, Tensor]:
    """Return the block's pair, if this step has one, and which rows of it can be used."""
    usable = torch.ones_like(block.steps, dtype=torch.bool)
    source = rules.criterion.pairs
    if source is None:
        return None, usable
    if rules.pairs is not None:
        probes, products = rules.pairs
        v, h = (block.view.gather(x.get).to(grads.dtype) for x in (probes, products))
    elif not source.memory:
        return None, ~usable
    else:
        param = block.view.gather(lambda p: p.detach()).to(grads.dtype)
        found = source.observe(param, grads, block.extra)
        active = row_peaks(grads) > 0
        source.remember(param, grads, block.extra, active.to(block.steps.dtype))
        if found is None:
            return None, ~usable
        v, h = found
        usable = block.steps > 0  # the first gradient has none to be compared with
    sound = usable & finite_rows(v) & finite_rows(h)
    return (keep_rows(sound, v), keep_rows(sound, h)), sound


def _start(block: Block, rules: StepRules, evidence: Evidence, active: Tensor) -> None:
    """Scale `Q` of the rows that see their first non-zero gradient."""
    waits = block.steps == 0
    fresh = active & waits
    # The only look at tensors' values from the host, and only until all rows have started.
    block.wait_for(waits & ~fresh)
    index = fresh.nonzero().flatten()
    if not len(index):
        return
    if rules.fitting.init_scale is None:
        sample = rules.criterion.size_sample(evidence)[index]
        scale = initial_scale(sample, row_peaks(sample), rules.criterion.damping)
    else:
        scale = evidence.grad.real.new_full(index.shape, rules.fitting.init_scale)
    started = block.form.init(block.view.shape, scale, block.view.like)
    for name, x in block.state.items():
        x[index] = started[name]


def _fit(block: Block, rules: StepRules, evidence: Evidence, rows: Tensor) -> None:
    """Update `Q` of some rows."""
    generator = rules.generator()
    form = block.form
    probe = rules.criterion.probe(evidence, block.extra, generator, needs_v=form.needs_v)
    rates = rules.rate * rows.to(probe.h.real.dtype)
    adaptive = rules.fitting.precond_lr
    if form.wants_image or isinstance(adaptive, Adaptive):
        probe = replace(probe, image=form.apply(block.operator(rules.uses), probe.h))
    if isinstance(adaptive, Adaptive):
        rates = rates * _adapted(block, adaptive, probe, rows)
    form.update(block.state, probe, form.draw(block.state, generator), rates)


def _adapted(block: Block, adaptive: Adaptive, probe: Probe, rows: Tensor) -> Tensor:
    """Return the part of the largest step size that the whitening error asks for, (B,)."""
    if probe.image is None:
        raise ValueError("An adaptive step size got a sample without its image P h.")
    size = abs_square(probe.image).flatten(1).mean(dim=1)
    if probe.v is not None:
        size = size / abs_square(probe.v).flatten(1).mean(dim=1)
    error = (size - 1).abs().nan_to_num(nan=1.0).clamp(max=1.0).to(block.steps.dtype)
    # What is kept is 1 - error, so that its start at 0 is the largest error.
    held = block.extra["whitened"]
    held.copy_(torch.where(rows, held.lerp(1 - error, 1 - adaptive.decay), held))
    return ((1 - held).clamp(adaptive.low, adaptive.high) / adaptive.high).to(size.dtype)
