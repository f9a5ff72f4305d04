"""How the tensor parts of blocks' steps are run: one operation after the other, or as graphs."""

import abc
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from psgd_optim.blocks import Block
from psgd_optim.row_step import Inputs, Numbers, Outcome, Plan, step_list, step_stack

_MOST_JOINT = 4
_KEPT_GUARDS = frozenset(["TENSOR_MATCH", "DUPLICATE_INPUT", "NO_TENSOR_ALIASING"])

Graph = Callable[[list[Inputs], Tensor, list[list[Tensor]]], list[Outcome]]
"""The steps of some blocks, from their inputs, numbers (k, 2), and rows of gradients."""


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
class Compiled(Runner):
    """Runs all blocks as one graph, compiled when a set of plans and layouts first occurs.

    The set changes with the gate, which makes two graphs, and with the blocks that have gradients.
    Where some blocks fit and others do not, and for sets that come after the first few, every block
    has a graph of its own, which it shares with equal ones: their number stays small.

    Copies and pickles start without graphs, and compile again.
    """

    def __init__(self) -> None:
        self._graphs: dict[Hashable, Graph] = {}
        self._joint: set[Hashable] = set()
        self._names: dict[Hashable, tuple[str, ...]] = {}

    def __reduce__(self) -> tuple[type["Compiled"], tuple[()]]:
        return Compiled, ()

    def run(self, tasks: Iterable[Task]) -> list[Outcome]:
        """Return the steps, of all blocks together if they are alike in what they do."""
        listed = list(tasks)
        rows = [task.block.gradient_rows() for task in listed]
        keys = [self._key(*pair) for pair in zip(listed, rows, strict=True)]
        if self._go_together(listed, tuple(keys)):
            return self._run(listed, rows, keys)
        alone = zip(listed, rows, keys, strict=True)
        return [self._run([task], [own], [key])[0] for task, own, key in alone]

    def _go_together(self, tasks: list[Task], key: Hashable) -> bool:
        if key in self._joint:
            return True
        kinds = {(task.plan.fits, task.block.steps.device) for task in tasks}
        if len(kinds) != 1 or len(self._joint) == _MOST_JOINT:
            return False
        self._joint.add(key)
        return True

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
            shapes = {name: x.to("meta") for name, x in task.inputs.state.items()}
            names = self._names[key] = tuple(plan.form.prepare(shapes, plan.uses))
        return names

    def _run(
        self, tasks: list[Task], rows: list[list[Tensor]], keys: list[Hashable]
    ) -> list[Outcome]:
        key = tuple(keys)
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = _graph([task.plan for task in tasks])
        device = tasks[0].block.steps.device
        given = [task.numbers for task in tasks]
        numbers = torch.tensor(given, dtype=torch.float64, device=device)
        return graph([task.inputs for task in tasks], numbers, rows)


def _graph(plans: list[Plan]) -> Graph:
    """Return the compiled steps of some plans, with a count of recompilations of its own."""

    def run(inputs: list[Inputs], numbers: Tensor, rows: list[list[Tensor]]) -> list[Outcome]:
        return [
            step_list(plan, own, Numbers(numbers[i, 0], numbers[i, 1]), grads)
            for i, (plan, own, grads) in enumerate(zip(plans, inputs, rows, strict=True))
        ]

    # torch counts the graphs of a code object, and gives up at the ninth.
    run.__code__ = run.__code__.replace()
    return compile_function(run)


def compile_function(
    function: Graph, backend: str | Callable[..., Callable[..., Any]] = "inductor"
) -> Graph:
    """Return a function as one graph of tensors of fixed shapes.

    Args:
        function: A function of tensors, in lists and dataclasses.
        backend: What makes code of the graph, as for `torch.compile`.

    Returns:
        The compiled function.
    """
    compiled: Graph = torch.compile(
        function,
        fullgraph=True,
        dynamic=False,
        backend=backend,
        options={"guard_filter_fn": _tensor_guards},
    )
    return compiled


def _tensor_guards(guards: Sequence[Any]) -> list[bool]:
    """Return which guards to keep: those of tensors.

    The rest of what a graph depends on is in the key that it is looked up with. To check it again
    takes almost as long as a small step.
    """
    return [guard.guard_type in _KEPT_GUARDS for guard in guards]
