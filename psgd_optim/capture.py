"""Whole steps that are recorded once, as CUDA graphs, and replayed.

A replay repeats the operations of the recorded step on the memory that it had. Whatever changes
from step to step is copied to a fixed place first: gradients, random numbers, rates, and the
operators `P` when something else than a replay has changed them.
"""

import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from psgd_optim.blocks import Block
from psgd_optim.row_step import Inputs, Outcome, Plan
from psgd_optim.runners import Compiled, Eager, Runner, Task, WholeRunner
from psgd_optim.types import State
from psgd_optim.views import gradient_of
from psgd_optim.whole_step import Draw, Ensemble, Left, Rates, number_tensor, step_whole

_MOST_RECORDINGS = 16

Step = Callable[[], list[Left]]
"""A step that reads and writes fixed places."""


class Recording(NamedTuple):
    """A step that can be replayed.

    Attributes:
        first: What the step left that was taken before it was recorded.
        left: Where every replay leaves the same.
        replay: Takes another step.
    """

    first: list[Left]
    left: list[Left]
    replay: Callable[[], None]


Record = Callable[[Step, torch.device], Recording]
"""Takes a step, and records another one without taking it."""


@final
class CudaRecorder:
    """Records steps as CUDA graphs; those of a device share memory, as they never run at once."""

    def __init__(self) -> None:
        # A stream keeps workspaces, of some 32 MiB: one for steps, and one for recordings.
        self._sides: dict[torch.device, torch.cuda.Stream] = {}
        self._benches: dict[torch.device, _Bench] = {}

    def __call__(self, step: Step, device: torch.device) -> Recording:
        """Take a step on a side stream, where it sets up what it needs, and record another one.

        Args:
            step: The step.
            device: Where it runs.

        Returns:
            The recording, for the current stream.
        """
        if device not in self._sides:
            self._sides[device] = _stream(device)
        side = self._sides[device]
        current = torch.cuda.current_stream(device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            first = step()
        current.wait_stream(side)
        for one in first:  # whose memory is the side stream's
            for x in (one.norms, one.sound):
                if x is not None:
                    x.record_stream(current)
        graph = torch.cuda.CUDAGraph()
        bench = self._benches.get(device)
        # Memory that no graph is left to use cannot be taken up again.
        alive = None if bench is None else next(iter(bench.graphs), None)
        if bench is None or alive is None:
            bench = self._benches[device] = _Bench(_stream(device), weakref.WeakSet())
        pool = None if alive is None else alive.pool()
        # Other threads, such as those that load data, may go on using the device.
        mode = "thread_local"
        with (
            torch.cuda.device(device),
            torch.cuda.stream(current),  # again, as a capture that fails leaves its own
            torch.cuda.graph(graph, pool=pool, stream=bench.stream, capture_error_mode=mode),
        ):
            left = step()
        bench.graphs.add(graph)
        return Recording(first, left, graph.replay)


class _Bench(NamedTuple):
    """Where graphs that share memory are recorded.

    Attributes:
        stream: The stream, the same for all, as torch asks for.
        graphs: Those that are in use.
    """

    stream: torch.cuda.Stream
    graphs: "weakref.WeakSet[torch.cuda.CUDAGraph]"


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class _Buffers:
    """The fixed places of one block, which all recordings share.

    Attributes:
        stack: (B, *shape), the gradients.
        noise: The criterion's random numbers, once there are some.
        draws: The form's.
        operators: What the form's `apply` takes, for each set of names that it has consisted of.
    """

    def __init__(self, block: Block) -> None:
        self.stack = block.view.gather(gradient_of)
        self.noise: Tensor | None = None
        self.draws: State = {}
        self.operators: dict[tuple[str, ...], State] = {}

    def load(self, block: Block, draw: Draw) -> tuple[list[Tensor], list[Tensor]]:
        """Return the places to copy to, made where there are none yet, and what to copy."""
        noise, draws = draw
        if noise is not None and self.noise is None:
            self.noise = noise.clone()
        if not self.draws:
            self.draws = {name: x.clone() for name, x in draws.items()}
        held = [self.stack, *([self.noise] if noise is not None and self.noise is not None else [])]
        fresh = [block.view.gather(gradient_of), *([] if noise is None else [noise])]
        return held + [self.draws[name] for name in draws], fresh + list(draws.values())

    def operator(self, block: Block, plan: Plan) -> State:
        """Return the place of the block's operator, where it now is as the state asks for."""
        found = block.operator(plan.uses)
        held = self.operators.get(tuple(found))
        if held is None:
            own = {id(x) for x in block.state.values()}
            held = {name: x if id(x) in own else x.clone() for name, x in found.items()}
            self.operators[tuple(found)] = held
        elif held is not found:
            for name, x in found.items():
                if held[name] is not x:
                    held[name].copy_(x)
        return block.keep_operator(plan.uses, held)


@final
class _Slot:
    """The place of one recording, with what it has been made for."""

    def __init__(self) -> None:
        self.addresses: Hashable = None
        self.recording: Recording | None = None
        self.numbers = torch.empty(0)


@final
class Captured(WholeRunner):
    """Replays a step that was recorded when its set of plans and blocks first occurred.

    The set changes with the gate, which makes two recordings, and with the blocks that have
    gradients. It is recorded again when a parameter has moved in memory, or its operator is made of
    other products. Eager are steps in which some blocks fit and others do not, or are in a special
    situation, or on several devices, or that come after many other sets.

    Copies and pickles start without recordings, and record again.

    Args:
        record: Records a step; CUDA graphs if it is left out.
    """

    def __init__(self, record: Record | None = None) -> None:
        self.ensembles = {}
        self._record: Record = CudaRecorder() if record is None else record
        self._needs_cuda = record is None
        self._eager = Eager()
        self._slots: dict[Hashable, _Slot] = {}
        self._chosen: dict[Ensemble, _Slot] = {}
        self._buffers: dict[Block, _Buffers] = {}

    def __reduce__(self) -> tuple[type["Captured"], tuple[()]]:
        return Captured, ()

    def check(self, blocks: Iterable[Block]) -> None:
        """Refuse blocks elsewhere than on CUDA devices.

        Args:
            blocks: The blocks.

        Raises:
            ValueError: If there is one.
        """
        for block in blocks:
            if self._needs_cuda and block.steps.device.type != "cuda":
                raise ValueError(
                    f"PSGD got capturable=True with parameters on {block.steps.device}; move the "
                    "model to a CUDA device first, or leave capturable out."
                )

    def admits(self, ensemble: Ensemble) -> bool:
        """Return whether there is a place for its recording."""
        self.check(ensemble.blocks)
        known_by = (ensemble.blocks, ensemble.key)
        if known_by not in self._slots:
            if len(self._slots) == _MOST_RECORDINGS:
                return False
            self._slots[known_by] = _Slot()
        self._chosen[ensemble] = self._slots[known_by]
        return True

    def run(self, tasks: Iterable[Task]) -> list[Outcome]:
        """Return the steps, one block after the other."""
        return self._eager.run(tasks)

    def run_whole(
        self, ensemble: Ensemble, draws: Sequence[Draw], rates: Sequence[Rates]
    ) -> list[Left]:
        """Replay the step of an ensemble, or take and record it."""
        slot = self._chosen[ensemble]
        buffers = self._loaded(ensemble, draws)
        operators = [
            own.operator(block, role.plan)
            for own, block, role in zip(buffers, ensemble.blocks, ensemble.roles, strict=True)
        ]
        numbers = number_tensor(rates, ensemble.device)
        addresses = _addresses(ensemble)
        if slot.recording is None or slot.addresses != addresses:
            # Together, or not at all: what is recorded may not fit into memory.
            recording = self._recorded(ensemble, buffers, operators, numbers)
            slot.recording, slot.addresses, slot.numbers = recording, addresses, numbers
            return recording.first
        slot.numbers.copy_(numbers)
        slot.recording.replay()
        return slot.recording.left

    def _loaded(self, ensemble: Ensemble, draws: Sequence[Draw]) -> list[_Buffers]:
        """Return the fixed places of all blocks, with this step's gradients and random numbers."""
        held: list[Tensor] = []
        fresh: list[Tensor] = []
        found = []
        for block, draw in zip(ensemble.blocks, draws, strict=True):
            if block not in self._buffers:
                self._buffers[block] = _Buffers(block)
            found.append(self._buffers[block])
            to, what = found[-1].load(block, draw)
            held += to
            fresh += what
        torch._foreach_copy_(held, fresh)
        return found

    def _recorded(
        self,
        ensemble: Ensemble,
        buffers: Sequence[_Buffers],
        operators: Sequence[State],
        numbers: Tensor,
    ) -> Recording:
        """Take the step, and record it."""
        inputs = [
            Inputs(
                state=block.state,
                extra=block.extra,
                steps=block.steps,
                operator=operator,
                noise=own.noise,
                draws=own.draws,
                has_ramped=False,
            )
            for block, own, operator in zip(ensemble.blocks, buffers, operators, strict=True)
        ]
        views = [block.view for block in ensemble.blocks]
        stacks = [own.stack for own in buffers]
        roles, clips = ensemble.roles, ensemble.clips

        def step() -> list[Left]:
            left = step_whole(roles, clips, views, inputs, numbers, stacks)
            for i, held in enumerate(operators):
                made = left[i].operator
                if made is None:
                    continue
                for name, x in made.items():
                    if held[name] is not x:
                        held[name].copy_(x)
                # A recording keeps what it leaves: not these products a second time.
                left[i] = left[i]._replace(operator=held)
            return left

        try:
            return self._record(step, ensemble.device)
        except RuntimeError as error:
            error.add_note("Raised while PSGD recorded a step; leave capturable=True out.")
            raise

    def forget(self) -> None:
        """Let go of all blocks and recordings."""
        for kept in (self.ensembles, self._slots, self._chosen, self._buffers):
            kept.clear()


def _addresses(ensemble: Ensemble) -> Hashable:
    """Return where the parameters are, which others may move, and which numbers are there."""
    params = (p for block in ensemble.blocks for p in block.view.params)
    return tuple((p.data_ptr(), p.stride(), p.dtype) for p in params)


def runner_of(*, compiles: bool, captures: bool) -> Runner:
    """Return what runs the steps of an optimizer.

    Args:
        compiles: As graphs of the compiler.
        captures: As CUDA graphs.
    """
    if compiles:
        return Compiled()
    return Captured() if captures else Eager()
