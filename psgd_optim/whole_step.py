"""A step of all blocks as one function of tensors: precondition each, clip together, move.

Eager steps call `clip_and_move` as it is; whoever runs a step as one graph calls `step_whole`.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from psgd_optim.blocks import Block
from psgd_optim.clipping import Clip
from psgd_optim.decay import Decay
from psgd_optim.fitting import Fitting
from psgd_optim.linalg import Mask
from psgd_optim.row_step import Inputs, Numbers, Plan, step_stack
from psgd_optim.types import State
from psgd_optim.updates import Update
from psgd_optim.views import View

Rates = tuple[float, float, float | Tensor, float]
"""What may differ from step to step: momentum, step size of `Q`, `lr`, rate of the decay."""

Draw = tuple[Tensor | None, State]
"""The random numbers of a fit: the criterion's and the form's."""


class Move(NamedTuple):
    """How the parameters of a block take their update.

    Attributes:
        decay: How.
        view: The parameters.
        lr: Step size.
        rate: The decay's rate.
        memory: What the decay remembers.
    """

    decay: Decay
    view: View
    lr: float | Tensor
    rate: float | Tensor
    memory: State


class Role(NamedTuple):
    """What decides which operations are run for a block.

    Attributes:
        plan: Up to the preconditioned gradient.
        decay: After the clips.
    """

    plan: Plan
    decay: Decay


class Left(NamedTuple):
    """What the step of a block leaves besides what it has written.

    Attributes:
        norms: (B,), of the preconditioned gradients before they are clipped.
        sound: Which rows were finite throughout.
        operator: What the form's `apply` takes from now on, in a step that fits.
    """

    norms: Tensor
    sound: Mask
    operator: State | None


@final
class Ensemble:
    """Blocks that step as one, and what of that stays the same from step to step.

    Attributes:
        blocks: The blocks, of one device, all of whose rows have started and have gradients.
        roles: What to do with each; all fit, or none.
        clips: What limits the updates.
        fitting: Where the roles come from, kept with the rest as its place in memory stands for it.
        numel: How many numbers move.
        key: All that the operations depend on, but for what guards of tensors check.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        roles: Sequence[Role],
        clips: Sequence[Clip],
        fitting: Fitting,
        gradients: Sequence[Hashable],
    ) -> None:
        """Put blocks together.

        Args:
            blocks: The blocks.
            roles: What to do with each.
            clips: What limits the updates.
            fitting: Where the roles come from.
            gradients: How the gradients of each lie in memory.
        """
        self.blocks = tuple(blocks)
        self.roles = tuple(roles)
        self.clips = clips
        self.fitting = fitting
        self.numel = sum(block.view.rows * math.prod(block.view.shape) for block in blocks)
        own = zip(self.blocks, self.roles, gradients, strict=True)
        self.key = (tuple(clips), tuple(_key(*each) for each in own))

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.blocks[0].steps.device


def _key(block: Block, role: Role, gradients: Hashable) -> Hashable:
    """Return what a block's operations depend on, names of dictionaries included."""
    names = tuple(block.extra), operator_names(role.plan, block.state)
    return role, block.view.layout, block.dtype, gradients, names


def inputs_of(block: Block, plan: Plan, draw: Draw, decay: float = math.inf) -> Inputs:
    """Return what a block's step reads and writes.

    Args:
        block: The block.
        plan: What to compute.
        draw: The random numbers of a fit.
        decay: Of the gradient average, where it may be looked at whether it is past its ramp.
    """
    noise, draws = draw
    return Inputs(
        state=block.state,
        extra=block.extra,
        steps=block.steps,
        operator=block.operator(plan.uses) if plan.reads_operator else {},
        noise=noise,
        draws=draws,
        has_ramped=block.has_ramped(decay),
    )


def operator_names(plan: Plan, state: State) -> tuple[str, ...]:
    """Return what the form's operator consists of, without forming it."""
    shapes = {name: x.to("meta") for name, x in state.items()}
    return tuple(plan.form.prepare(shapes, plan.uses))


def step_whole(
    roles: Sequence[Role],
    clips: Sequence[Clip],
    views: Sequence[View],
    inputs: Sequence[Inputs],
    numbers: Tensor,
    stacks: Sequence[Tensor],
) -> list[Left]:
    """Step blocks whose rows have all started, and need no pair.

    Args:
        roles: What to do with each.
        clips: What limits the updates, in order.
        views: The parameters of each, which move.
        inputs: What else a step reads and writes.
        numbers: (k, 4), the `Rates` of each.
        stacks: (B, *shape), the gradients of each.

    Returns:
        What is left of each.
    """
    rates = [numbers[i].unbind() for i in range(len(roles))]
    outcomes = [
        step_stack(role.plan, own, Numbers(momentum, rate), stack)
        for role, own, (momentum, rate, *_), stack in zip(roles, inputs, rates, stacks, strict=True)
    ]
    updates = [Update(outcome.rows, outcome.norms, outcome.lengths) for outcome in outcomes]
    norms = [update.norms() for update in updates]
    moves = [
        Move(role.decay, view, lr, decay, own.extra)
        for role, view, own, (*_, lr, decay) in zip(roles, views, inputs, rates, strict=True)
    ]
    clip_and_move(updates, clips, moves)
    found = zip(norms, outcomes, strict=True)
    return [Left(size, outcome.sound, outcome.operator) for size, outcome in found]


def clip_and_move(updates: Sequence[Update], clips: Sequence[Clip], moves: Sequence[Move]) -> None:
    """Clip the updates of all blocks together, and move the parameters by them.

    Args:
        updates: One per block; overwritten.
        clips: What limits them, in order.
        moves: What to do with each.
    """
    for clip in clips:
        clip.clip_(updates)
    for update, move in zip(updates, moves, strict=True):
        move.decay.take_step(move.view, update.rows, move.lr, move.rate, move.memory)


def number_tensor(rates: Sequence[Rates], device: torch.device) -> Tensor:
    """Return numbers as one tensor (k, 4), without waiting for the device."""
    # A tensor on the CPU is there to be read.
    plain = [[0.0 if _is_elsewhere(x) else float(x) for x in row] for row in rates]
    numbers = torch.tensor(plain, dtype=torch.float64).to(device, non_blocking=True)
    for own, row in zip(numbers, rates, strict=True):
        for place, x in enumerate(row):
            if isinstance(x, Tensor) and _is_elsewhere(x):
                own[place].copy_(x.detach().reshape(()))
    return numbers


def _is_elsewhere(x: float | Tensor) -> bool:
    return isinstance(x, Tensor) and x.device.type != "cpu"
