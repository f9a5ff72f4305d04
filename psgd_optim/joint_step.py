"""One step of all blocks: precondition each, clip them together, move the parameters."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from psgd_optim.background import Background, Job, Work
from psgd_optim.block_step import StepRules, draw, plan_of, precondition_all
from psgd_optim.blocks import Block
from psgd_optim.clipping import Clip
from psgd_optim.criteria import Criterion
from psgd_optim.curvature import Pairs
from psgd_optim.diagnostics import StepFigures
from psgd_optim.fitting import Fitting
from psgd_optim.groups import GroupParts, check_unchanged
from psgd_optim.noise import noise_generator
from psgd_optim.runners import Runner, WholeRunner
from psgd_optim.store import PLACE_SHIFT
from psgd_optim.whole_step import Ensemble, Move, Role, clip_and_move

_MOST_ENSEMBLES = 64


class Member(NamedTuple):
    """A block with the group that it belongs to.

    Attributes:
        number: Of its random stream.
        block: The block.
        settings: The group's numbers.
        parts: The group's objects.
    """

    number: int
    block: Block
    settings: dict[str, Any]
    parts: GroupParts

    @property
    def place(self) -> int:
        """A small number of its own, for the gate of fits that are spread."""
        return (self.number >> PLACE_SHIFT) + self.number % (1 << PLACE_SHIFT)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What is special about one step.

    Args:
        seed: Of all random numbers.
        step: Counted from 0.
        uses: About how often `P` is applied between two fits.
        pairs: Hessian-vector pairs, in the steps that have some.
    """

    seed: int
    step: int
    uses: float
    pairs: Pairs | None


def take_step(
    members: Iterable[Member],
    criterion: Criterion,
    fitting: Fitting,
    clips: Sequence[Clip],
    moment: Moment,
    runner: Runner,
    background: Background,
) -> StepFigures:
    """Step every block that has a gradient.

    Args:
        members: All blocks.
        criterion: What `P` is fitted to.
        fitting: How.
        clips: What limits the updates, in order.
        moment: Which step this is.
        runner: Runs the blocks' own steps.
        background: Does the fits that are to overlap with what follows; nothing runs in it yet.

    Returns:
        The figures of the step.

    Raises:
        TypeError: If a gradient is sparse, or a parameter's dtype has changed; nothing moves then.
        ValueError: If a group keeps no average for its momentum, or a schedule leaves its range.
    """
    # All gradients are looked at before anything moves: one that is refused leaves no trace.
    work = [(member, member.block.units_with_gradient()) for member in members]
    work = [(member, units) for member, units in work if units]
    for member, _ in work:
        check_unchanged(member.settings, member.block)
    taking = [member for member, _ in work]
    rules = _rules(taking, criterion, fitting, clips, moment)
    parts = [member.block.select(units) for member, units in work]
    if isinstance(runner, WholeRunner) and all(part.is_steady for part in parts):
        ensemble = _ensemble(taking, rules, clips, runner)
        if ensemble is not None:
            return _step_as_one(ensemble, taking, rules, runner)
    later: list[Job] = []
    if fitting.overlap:
        rules = [
            rule._replace(put_off=partial(_put_off, later, member.block, part))
            for member, part, rule in zip(taking, parts, rules, strict=True)
        ]
    figures = _step_apart(taking, parts, rules, clips, runner)
    # Last: a fit reads and writes what the lines above do.
    background.run(later)
    return figures


def _step_apart(
    members: Sequence[Member],
    parts: Sequence[Block],
    rules: Sequence[StepRules],
    clips: Sequence[Clip],
    runner: Runner,
) -> StepFigures:
    """Precondition selections of blocks one by one, then clip and move."""
    found = precondition_all(list(zip(parts, rules, strict=True)), runner)
    updates = [update for update, _ in found]
    count = sum(update.rows.numel() for update in updates)
    figures = StepFigures([update.norms() for update in updates], count, [m for _, m in found])
    moves = [
        Move(member.parts.decay, part.view, *_lr_and_decay(member), part.extra)
        for member, part in zip(members, parts, strict=True)
    ]
    clip_and_move(updates, clips, moves)
    for member, part in zip(members, parts, strict=True):
        member.block.write_back(part)
    return figures


def _ensemble(
    members: Sequence[Member],
    rules: Sequence[StepRules],
    clips: Sequence[Clip],
    runner: WholeRunner,
) -> Ensemble | None:
    """Return the blocks as an ensemble that the runner knows, if they can step as one."""
    if not members or rules[0].criterion.pairs is not None:
        return None
    blocks = [member.block for member in members]
    fits = {rule.rate > 0 for rule in rules}
    if len(fits) > 1 or len({block.steps.device for block in blocks}) > 1:
        return None
    layouts = [block.gradient_strides() for block in blocks]
    first = rules[0]
    # By identity, as to hash them takes longer.
    parts = tuple(id(part) for part in (clips, first.criterion, first.fitting))
    known_by = (*fits, first.uses, *parts, *blocks, *layouts)
    if known_by not in runner.ensembles:
        if len(runner.ensembles) == _MOST_ENSEMBLES:
            return None
        roles = [
            Role(plan_of(member.block, rule), member.parts.decay)
            for member, rule in zip(members, rules, strict=True)
        ]
        found = Ensemble(blocks, roles, clips, first.fitting, layouts)
        runner.ensembles[known_by] = found if runner.admits(found) else None
    return runner.ensembles[known_by]


def _step_as_one(
    ensemble: Ensemble, members: Sequence[Member], rules: Sequence[StepRules], runner: WholeRunner
) -> StepFigures:
    """Step blocks that are all in no special situation."""
    rates = [
        (rule.momentum, rule.rate, *_lr_and_decay(member))
        for member, rule in zip(members, rules, strict=True)
    ]
    blocks = ensemble.blocks
    draws = [draw(block, rule) for block, rule in zip(blocks, rules, strict=True)]
    found = runner.run_whole(ensemble, draws, rates)
    for block, left, rule in zip(blocks, found, rules, strict=True):
        if left.operator is not None:
            block.keep_operator(rule.uses, left.operator)
    return StepFigures(
        [left.norms for left in found], ensemble.numel, [left.sound for left in found]
    )


def _lr_and_decay(member: Member) -> tuple[float | Tensor, float]:
    lr = member.settings["lr"]
    # Lists of tensors take a factor without axes alone.
    return lr.reshape(()) if isinstance(lr, Tensor) else lr, member.settings["weight_decay"]


def _put_off(jobs: list[Job], block: Block, part: Block, fit: Work) -> None:
    """Add the fit of a selection of a block to the jobs."""

    def finish() -> None:
        fit()
        block.write_fit_back(part)

    jobs.append(Job(part.steps.device, finish))


def _rules(
    members: Sequence[Member],
    criterion: Criterion,
    fitting: Fitting,
    clips: Sequence[Clip],
    moment: Moment,
) -> list[StepRules]:
    """Return how each block is to step."""
    measures = any(clip.needs_lengths for clip in clips)
    rate = 0.0 if fitting.spread else fitting.rate(moment.seed, moment.step)
    return [
        StepRules(
            criterion=criterion,
            fitting=fitting,
            rate=fitting.rate(moment.seed, moment.step, member.place) if fitting.spread else rate,
            momentum=member.settings["momentum"],
            nesterov=member.parts.nesterov,
            pairs=moment.pairs,
            uses=moment.uses,
            generator=partial(
                noise_generator, member.block.steps.device, moment.seed, moment.step, member.number
            ),
            measures=measures,
        )
        for member in members
    ]
