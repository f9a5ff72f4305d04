"""How the tensor parts of blocks' steps are run: one operation after the other, or as graphs."""

import abc
import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar, cast, final

import torch
from torch import Tensor

from psgd_optim.blocks import Block
from psgd_optim.row_step import Inputs, Numbers, Outcome, Plan, step_list, step_stack
from psgd_optim.views import View, gradient_of
from psgd_optim.whole_step import (
    Draw,
    Ensemble,
    Left,
    Rates,
    inputs_of,
    number_tensor,
    operator_names,
    step_whole,
)

_MOST_WHOLE = 4
_count = itertools.count()
_KEPT_GUARDS = frozenset(["TENSOR_MATCH", "DUPLICATE_INPUT", "NO_TENSOR_ALIASING"])

Function = TypeVar("Function", bound=Callable[..., Any])

BlockGraph = Callable[[Inputs, Tensor, list[Tensor]], Outcome]
"""The step of a block, from its inputs, numbers (2,), and rows of gradients."""

WholeGraph = Callable[[list[View], list[Inputs], Tensor], list[Left]]
"""The step of an ensemble, from its views, inputs and numbers (k, 4)."""


class Task(NamedTuple):
    """The step of a block whose rows have all started, and need no pair.

    Attributes:
        block: The block.
        plan: What to compute.
        inputs: What to compute it with; its state moves on.
        numbers: The rates.
    """

    block: Block
    plan: Plan
    inputs: Inputs
    numbers: Numbers


class Runner(abc.ABC):
    """Runs steps."""

    @abc.abstractmethod
    def run(self, tasks: Iterable[Task]) -> list[Outcome]:
        """Return the steps of some blocks for their present gradients, in order."""

    def check(self, blocks: Iterable[Block]) -> None:
        """Refuse new blocks that it cannot step."""
        return  # most can step all

    def forget(self) -> None:
        """Let go of all blocks, as others take their place."""
        return  # most keep none


class WholeRunner(Runner):
    """Runs steps, those of all blocks together where it can.

    Attributes:
        ensembles: What it has run, or refused to run, by whatever the caller knows it by.
    """

    ensembles: dict[Hashable, Ensemble | None]

    @abc.abstractmethod
    def admits(self, ensemble: Ensemble) -> bool:
        """Return whether it will run an ensemble; it is asked once."""

    @abc.abstractmethod
    def run_whole(
        self, ensemble: Ensemble, draws: Sequence[Draw], rates: Sequence[Rates]
    ) -> list[Left]:
        """Step an ensemble, and return what is left.

        Args:
            ensemble: What to step; its state and parameters move on.
            draws: The random numbers of each block.
            rates: The numbers of each block.
        """


@final
class Eager(Runner):
    """Calls one operation after the other."""

    def run(self, tasks: Iterable[Task]) -> list[Outcome]:
        """Return the steps, one block after the other."""
        return [
            step_stack(task.plan, task.inputs, task.numbers, task.block.gather_gradients())
            for task in tasks
        ]


@final
class Compiled(WholeRunner):
    """Runs a step as one graph, compiled when a set of plans and layouts first occurs.

    The set changes with the gate, which makes two graphs, and with the blocks that have gradients.
    Where some blocks fit and others do not, where some are in a special situation, and for sets
    that come after the first few, every block has a graph of its own, up to the preconditioned
    gradient, which it shares with equal ones: their number stays small.

    Copies and pickles start without graphs, and compile again.
    """

    def __init__(self) -> None:
        self.ensembles = {}
        self._chosen: dict[Ensemble, WholeGraph] = {}
        self._wholes: dict[Hashable, WholeGraph] = {}
        self._graphs: dict[Hashable, BlockGraph] = {}
        self._names: dict[Hashable, tuple[str, ...]] = {}

    def __reduce__(self) -> tuple[type["Compiled"], tuple[()]]:
        return Compiled, ()

    def admits(self, ensemble: Ensemble) -> bool:
        """Return whether there is a graph for its like, or may be one more."""
        graph = self._wholes.get(ensemble.key)
        if graph is None:
            if len(self._wholes) == _MOST_WHOLE:
                return False
            graph = self._wholes[ensemble.key] = _whole_graph(ensemble)
        self._chosen[ensemble] = graph
        return True

    def run_whole(
        self, ensemble: Ensemble, draws: Sequence[Draw], rates: Sequence[Rates]
    ) -> list[Left]:
        """Step an ensemble as one graph."""
        numbers = number_tensor(rates, ensemble.device)
        inputs = [
            inputs_of(block, role.plan, draw)
            for block, role, draw in zip(ensemble.blocks, ensemble.roles, draws, strict=True)
        ]
        return self._chosen[ensemble]([block.view for block in ensemble.blocks], inputs, numbers)

    def forget(self) -> None:
        """Let go of all blocks; graphs stay."""
        self.ensembles.clear()
        self._chosen.clear()

    def run(self, tasks: Iterable[Task]) -> list[Outcome]:
        """Return the steps, each block's as a graph of its own."""
        return [self._run(task) for task in tasks]

    def _run(self, task: Task) -> Outcome:
        rows = task.block.gradient_rows()
        key = self._key(task, rows)
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = _block_graph(task.plan)
        numbers = torch.tensor(task.numbers, dtype=torch.float64)
        return graph(task.inputs, numbers.to(task.block.steps.device, non_blocking=True), rows)

    def _key(self, task: Task, rows: list[Tensor]) -> Hashable:
        """Return all that a graph depends on besides what the guards of its tensors check."""
        strides = tuple(row.stride() for row in rows)
        shape = task.block.view.shape
        # Dictionaries are not guarded: two groups may differ in what they remember.
        inputs = task.inputs
        names = tuple(inputs.extra), tuple(inputs.draws), inputs.noise is None
        return task.plan, self._operator_names(task), shape, task.block.dtype, strides, names

    def _operator_names(self, task: Task) -> tuple[str, ...]:
        """Return what the form's operator consists of."""
        plan, block = task.plan, task.block
        key = (plan.form, plan.uses, block.view.shape, block.dtype)
        names = self._names.get(key)
        if names is None:
            names = self._names[key] = operator_names(plan, task.inputs.state)
        return names


def _block_graph(plan: Plan) -> BlockGraph:
    """Return the compiled step of a plan, with a count of recompilations of its own."""

    def run(inputs: Inputs, numbers: Tensor, rows: list[Tensor]) -> Outcome:
        return step_list(plan, inputs, Numbers(numbers[0], numbers[1]), rows)

    return compile_function(_known_apart(run))


def _whole_graph(ensemble: Ensemble) -> WholeGraph:
    """Return the compiled step of the like of an ensemble, of which it keeps no block."""
    roles, clips = ensemble.roles, ensemble.clips

    def run(views: list[View], inputs: list[Inputs], numbers: Tensor) -> list[Left]:
        stacks = [torch.stack(view.lay(gradient_of)) for view in views]
        return step_whole(roles, clips, views, inputs, numbers, stacks)

    return compile_function(_known_apart(run))


def _known_apart(function: Function) -> Function:
    """Return a function with a code and a name of its own."""
    # torch counts the graphs of a code object, and gives up at the ninth; and what differs between
    # calls of functions of one name and place becomes dynamic.
    code = function.__code__
    function.__code__ = code.replace(co_name=f"{code.co_name}_{next(_count)}")
    return function


def compile_function(
    function: Function, backend: str | Callable[..., Callable[..., Any]] = "inductor"
) -> Function:
    """Return a function as one graph of tensors of fixed shapes.

    Args:
        function: A function of tensors, in lists and records.
        backend: What makes code of the graph, as for `torch.compile`.

    Returns:
        The compiled function.
    """
    options: dict[str, Any] = {"guard_filter_fn": _tensor_guards}
    if backend == "inductor":
        options["size_asserts"] = False  # the guards have looked already
    # With `dynamic=False`, every call would patch torch's configuration, which takes a sixth of a
    # small step: a function meets tensors of one shape alone, which makes nothing dynamic.
    compiled = torch.compile(function, fullgraph=True, backend=backend, options=options)
    return cast("Function", compiled)


def _tensor_guards(guards: Sequence[Any]) -> list[bool]:
    """Return which guards to keep: those of tensors.

    The rest of what a graph depends on is in the key that it is looked up with. To check it again
    takes almost as long as a small step.
    """
    return [guard.guard_type in _KEPT_GUARDS for guard in guards]
