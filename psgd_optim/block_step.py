"""What one step does to one block: start, average, fit, precondition."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from psgd_optim.averages import fold_in
from psgd_optim.background import Work, at_once
from psgd_optim.blocks import Block
from psgd_optim.criteria import Criterion, Evidence
from psgd_optim.curvature import Pairs
from psgd_optim.fitting import Fitting, initial_scale
from psgd_optim.linalg import Mask, abs_square, both, finite_rows, keep_rows, known, row_peaks
from psgd_optim.schedules import Adaptive
from psgd_optim.types import Probe
from psgd_optim.updates import Update


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
        run: Takes the fit and does it, now or before anything else happens to the block.
    """

    criterion: Criterion
    fitting: Fitting
    rate: float
    momentum: float
    nesterov: bool
    pairs: Pairs | None
    uses: float
    generator: Callable[[], torch.Generator]
    run: Callable[[Work], None] = at_once


def precondition(block: Block, rules: StepRules) -> tuple[Update, Mask]:
    """Return a block's preconditioned gradients, and which rows are finite throughout.

    Args:
        block: The rows to step; their state moves on.
        rules: How.

    Returns:
        The update, zero in rows to leave alone, and which rows were sound.
    """
    grads = block.gather_gradients()
    ok = finite_rows(grads)
    grads = keep_rows(ok, grads)
    pair, sound = _pair(block, rules, grads)
    # Without a given scale, a row may have to wait for a pair to start from.
    waits = rules.criterion.pairs is not None and rules.fitting.init_scale is None
    active = ok
    if block.pending:
        ready = known(row_peaks(grads) > 0)
        active = both(ok, _any(block.steps > 0, both(ready, sound) if waits else ready))
    before = block.catch_up(rules.momentum)
    evidence = Evidence(grad=grads, average=grads, steps=before, pair=pair)
    if block.pending and not (waits and pair is None):
        _start(block, rules, evidence, active)
    is_plain = active is None and block.has_ramped(rules.momentum)
    block.count(active)
    if "momentum" in block.extra:
        ramp = None if is_plain else before
        average = fold_in(block.extra["momentum"], grads, ramp, active, rules.momentum)
        evidence = Evidence(grad=grads, average=average, steps=before, pair=pair)
    ahead = grads.lerp(evidence.average, rules.momentum) if rules.nesterov else evidence.average
    first = rules.fitting.fits_first
    rows = None if first else _direction(block, rules, ahead)
    rules.run(partial(_learn, block, rules, evidence, active, sound))
    update = Update(_direction(block, rules, ahead) if rows is None else rows)
    # Rows left alone keep their parameter too, whatever their average still holds; and an
    # average too large for P, or a P that is broken, gives no direction.
    finite = update.finite()
    alive = both(finite, active)
    if alive is not None:
        update = Update(keep_rows(alive, update.rows))
    if finite is not None and active is not None:
        finite = finite | ~active
    return update, both(ok, finite)


def _any(a: Tensor, b: Mask) -> Mask:
    """Return the rows that are in one mask or the other."""
    return None if b is None else a | b


def _direction(block: Block, rules: StepRules, x: Tensor) -> Tensor:
    operator = block.operator(rules.uses)
    return rules.criterion.direction(lambda y: block.form.apply(operator, y), x)


def _pair(
    block: Block, rules: StepRules, grads: Tensor
) -> tuple[tuple[Tensor, Tensor] | None, Mask]:
    """Return the block's pair, if this step has one, and which rows of it can be used."""
    source = rules.criterion.pairs
    if source is None:
        return None, None
    usable: Mask = None
    none = torch.zeros_like(block.steps, dtype=torch.bool)
    if rules.pairs is not None:
        probes, products = rules.pairs
        v, h = (block.view.gather(x.get).to(grads.dtype) for x in (probes, products))
    elif not source.memory:
        return None, none
    else:
        param = block.view.gather(lambda p: p.detach()).to(grads.dtype)
        found = source.observe(param, grads, block.extra)
        source.remember(param, grads, block.extra, known(row_peaks(grads) > 0))
        if found is None:
            return None, none
        v, h = found
        usable = known(block.steps > 0)  # the first gradient has none to be compared with
    sound = both(usable, finite_rows(v), finite_rows(h))
    return (keep_rows(sound, v), keep_rows(sound, h)), sound


def _start(block: Block, rules: StepRules, evidence: Evidence, active: Mask) -> None:
    """Scale `Q` of the rows that see their first non-zero gradient."""
    waits = block.steps == 0
    fresh = waits if active is None else active & waits
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


def _learn(block: Block, rules: StepRules, evidence: Evidence, active: Mask, sound: Mask) -> None:
    """Fit `Q` in a step that does, and remember what the fit must not have seen."""
    if rules.rate:
        _fit(block, rules, evidence, both(active, sound))
    rules.criterion.remember(evidence, block.extra, active)


def _fit(block: Block, rules: StepRules, evidence: Evidence, rows: Mask) -> None:
    """Update `Q` of some rows."""
    generator = rules.generator()
    form = block.form
    probe = rules.criterion.probe(evidence, block.extra, generator, needs_v=form.needs_v)
    real = probe.h.real.dtype
    rates: Tensor | float = rules.rate if rows is None else rules.rate * rows.to(real)
    adaptive = rules.fitting.precond_lr
    if form.wants_image or isinstance(adaptive, Adaptive):
        probe = replace(probe, image=form.apply(block.operator(rules.uses), probe.h))
    if isinstance(adaptive, Adaptive):
        rates = rates * _adapted(block, adaptive, probe, rows)
    form.update(block.state, probe, form.draw(block.state, generator), rates)


def _adapted(block: Block, adaptive: Adaptive, probe: Probe, rows: Mask) -> Tensor:
    """Return the part of the largest step size that the whitening error asks for, (B,)."""
    if probe.image is None:
        raise ValueError("An adaptive step size got a sample without its image P h.")
    size = abs_square(probe.image).flatten(1).mean(dim=1)
    if probe.v is not None:
        size = size / abs_square(probe.v).flatten(1).mean(dim=1)
    error = (size - 1).abs().nan_to_num(nan=1.0).clamp(max=1.0).to(block.steps.dtype)
    # What is kept is 1 - error, so that its start at 0 is the largest error.
    held = block.extra["whitened"]
    held.copy_(keep_rows(rows, held.lerp(1 - error, 1 - adaptive.decay), held))
    return ((1 - held).clamp(adaptive.low, adaptive.high) / adaptive.high).to(size.dtype)
