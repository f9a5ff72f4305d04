"""What one step does to one block: start, average, fit, precondition."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from psgd_optim.background import Work
from psgd_optim.blocks import Block
from psgd_optim.criteria import Criterion, Evidence
from psgd_optim.curvature import Pairs
from psgd_optim.fitting import Fitting, initial_scale
from psgd_optim.linalg import Mask, both, finite_rows, keep_rows, known, row_peaks
from psgd_optim.row_step import Numbers, Order, Outcome, Plan, Sight, cleaned, step_rows
from psgd_optim.runners import Runner, Task
from psgd_optim.schedules import Adaptive
from psgd_optim.types import State
from psgd_optim.updates import Update
from psgd_optim.whole_step import Draw, inputs_of


class StepRules(NamedTuple):
    """What a block's step needs besides the block.

    Attributes:
        criterion: What `P` is fitted to.
        fitting: How.
        rate: Step size of `Q`, 0 in a step that does not fit it.
        momentum: Decay of the gradient average.
        nesterov: Whether the step looks ahead of the average.
        pairs: Hessian-vector pairs, in the steps that have some.
        uses: About how often `P` is applied between two fits.
        generator: Makes the generator of the block's noise in this step.
        put_off: Takes the fit and does it before anything else happens to the block, if it is not
            to be part of the step.
        measures: Whether a clip needs the updates' lengths.
    """

    criterion: Criterion
    fitting: Fitting
    rate: float
    momentum: float
    nesterov: bool
    pairs: Pairs | None
    uses: float
    generator: Callable[[], torch.Generator]
    put_off: Callable[[Work], None] | None = None
    measures: bool = False


def precondition_all(
    work: Sequence[tuple[Block, StepRules]], runner: Runner
) -> list[tuple[Update, Mask]]:
    """Return blocks' preconditioned gradients, and which rows are finite throughout.

    Args:
        work: The rows to step, whose state moves on, and how.
        runner: Runs the steps of blocks in no special situation.

    Returns:
        For each block the update, zero in rows to leave alone, and which rows were sound.
    """
    plain = [block.is_steady and rules.criterion.pairs is None for block, rules in work]
    steady = itertools.compress(work, plain)
    # One after the other: random numbers of all blocks at once would take memory.
    found = iter(runner.run(_task(block, rules) for block, rules in steady))
    return [
        _noted(block, rules, next(found) if is_plain else _special_step(block, rules))
        for (block, rules), is_plain in zip(work, plain, strict=True)
    ]


def _noted(block: Block, rules: StepRules, outcome: Outcome) -> tuple[Update, Mask]:
    """Tell the block what its step has left, and return the update and the sound rows."""
    block.count(_known(outcome.active))
    if outcome.operator is not None:
        block.keep_operator(_uses(block, rules), outcome.operator)
    if outcome.later is not None and rules.put_off is not None:
        rules.put_off(partial(_catch_up, block, rules.uses, outcome.later))
    return Update(outcome.rows, outcome.norms, outcome.lengths), _known(outcome.sound)


def _catch_up(block: Block, uses: float, later: Callable[[], State]) -> None:
    """Do a fit that was put off."""
    block.keep_operator(uses, later())


def _special_step(block: Block, rules: StepRules) -> Outcome:
    """Step rows of which some have not started, or have a pair, or are a selection."""
    sight = _sight(block, rules)
    task = _task(block, rules)
    return step_rows(task.plan, task.inputs, task.numbers, sight)


def _known(mask: Mask) -> Mask:
    """Return `None` for a mask of all, which a graph cannot know."""
    return None if mask is None else known(mask)


def _order(rules: StepRules) -> Order:
    if rules.put_off is not None:
        return Order.LATER
    return Order.FIRST if rules.fitting.fits_first else Order.LAST


def plan_of(block: Block, rules: StepRules) -> Plan:
    """Return what a block's step computes."""
    adaptive = rules.fitting.precond_lr
    return Plan(
        form=block.form,
        criterion=rules.criterion,
        nesterov=rules.nesterov,
        fits=rules.rate > 0,
        order=_order(rules),
        adaptive=adaptive if isinstance(adaptive, Adaptive) else None,
        uses=_uses(block, rules),
        measures=rules.measures,
    )


def draw(block: Block, rules: StepRules) -> Draw:
    """Return the random numbers of a block's fit, if it fits."""
    if not rules.rate > 0:
        return None, {}
    generator = rules.generator()
    like = block.empty_rows()
    noise = rules.criterion.draw(like, generator, needs_v=block.form.needs_v)
    return noise, block.form.draw(block.state, generator)


def _uses(block: Block, rules: StepRules) -> float:
    """Return how often `P` is applied before it is lost or changes: a selection lives one step."""
    return 1.0 if block.is_selection else rules.uses


def _task(block: Block, rules: StepRules) -> Task:
    """Return what to compute, with the random numbers of a fit."""
    plan = plan_of(block, rules)
    inputs = inputs_of(block, plan, draw(block, rules), rules.momentum)
    numbers = Numbers(momentum=rules.momentum, rate=rules.rate)
    return Task(block=block, plan=plan, inputs=inputs, numbers=numbers)


def _sight(block: Block, rules: StepRules) -> Sight:
    """Look at the gradients and the pair, and start rows that can be started."""
    grads, ok = cleaned(block.gather_gradients())
    pair, sound = _pair(block, rules, grads)
    # Without a given scale, a row may have to wait for a pair to start from.
    waits = rules.criterion.pairs is not None and rules.fitting.init_scale is None
    active = ok
    if block.pending:
        ready = known(row_peaks(grads) > 0)
        active = both(ok, _any(block.steps > 0, both(ready, sound) if waits else ready))
    before = block.catch_up(rules.momentum)
    if block.pending and not (waits and pair is None):
        evidence = Evidence(grad=grads, average=grads, steps=before, pair=pair)
        _start(block, rules, evidence, active)
    return Sight(grads=grads, ok=ok, active=active, before=before, pair=pair, sound=sound)


def _any(a: Tensor, b: Mask) -> Mask:
    """Return the rows that are in one mask or the other."""
    return None if b is None else a | b


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
