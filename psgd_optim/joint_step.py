"""One step of all blocks: precondition each, clip them together, move the parameters."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from psgd_optim.background import Background, Job, Work
from psgd_optim.block_step import StepRules, precondition_all
from psgd_optim.blocks import Block
from psgd_optim.clipping import Clip
from psgd_optim.criteria import Criterion
from psgd_optim.curvature import Pairs
from psgd_optim.diagnostics import StepFigures
from psgd_optim.fitting import Fitting
from psgd_optim.groups import GroupParts, check_unchanged
from psgd_optim.noise import noise_generator
from psgd_optim.runners import Runner
from psgd_optim.store import PLACE_SHIFT


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
    rules = [_rules(member, criterion, fitting, moment) for member, _ in work]
    parts = [member.block.select(units) for member, units in work]
    later: list[Job] = []
    if fitting.overlap:
        rules = [
            rule._replace(put_off=partial(_put_off, later, member.block, part))
            for (member, _), part, rule in zip(work, parts, rules, strict=True)
        ]
    found = precondition_all(list(zip(parts, rules, strict=True)), runner)
    updates, sound = [update for update, _ in found], [mask for _, mask in found]
    figures = StepFigures(updates, sound)
    for clip in clips:
        clip.clip_(updates)
    for (member, _), part, update in zip(work, parts, updates, strict=True):
        lr, rate = member.settings["lr"], member.settings["weight_decay"]
        member.parts.decay.take_step(part.view, update.rows, lr, rate, part.extra)
        member.block.write_back(part)
    # Last: a fit reads and writes what the lines above do.
    background.run(later)
    return figures


def _put_off(jobs: list[Job], block: Block, part: Block, fit: Work) -> None:
    """Add the fit of a selection of a block to the jobs."""

    def finish() -> None:
        fit()
        block.write_fit_back(part)

    jobs.append(Job(part.steps.device, finish))


def _rules(member: Member, criterion: Criterion, fitting: Fitting, moment: Moment) -> StepRules:
    device = member.block.steps.device
    stream = partial(noise_generator, device, moment.seed, moment.step, member.number)
    return StepRules(
        criterion=criterion,
        fitting=fitting,
        rate=fitting.rate(moment.seed, moment.step, member.place),
        momentum=member.settings["momentum"],
        nesterov=member.parts.nesterov,
        pairs=moment.pairs,
        uses=moment.uses,
        generator=stream,
    )
