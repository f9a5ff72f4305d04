"""How the tensor part of a block's step is run: as it is, or as one compiled graph per plan."""

import abc
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from psgd_optim.blocks import Block
from psgd_optim.row_step import Inputs, Outcome, Plan, step_list, step_stack

Graph = Callable[[Inputs, list[Tensor]], Outcome]
"""A plan's step, given the rows of the gradient."""

_KEPT_GUARDS = frozenset(["TENSOR_MATCH", "DUPLICATE_INPUT", "NO_TENSOR_ALIASING"])


class Runner(abc.ABC):
    """Runs the steps of blocks that are steady and need no pair."""

    @abc.abstractmethod
    def number(self, value: float, like: Tensor) -> float | Tensor:
        """Return a number that may differ in the next step, as this runner wants it.

        Args:
            value: The number.
            like: On the block's device.

        Returns:
            The number, or a 0-D tensor.
        """

    @abc.abstractmethod
    def run(self, plan: Plan, inputs: Inputs, block: Block) -> Outcome:
        """Return the step of a block for its present gradients; the inputs' state moves on."""


@final
class Eager(Runner):
    """Calls one operation after the other."""

    def number(self, value: float, like: Tensor) -> float:
        """Return the number itself."""
        return value

    def run(self, plan: Plan, inputs: Inputs, block: Block) -> Outcome:
        """Stack the gradients, and step."""
        return step_stack(plan, inputs, block.gather_gradients())


@final
class Compiled(Runner):
    """Runs one graph, made once for each distinct plan and layout of gradients.

    Copies and pickles start without graphs, and compile again.
    """

    def __init__(self) -> None:
        self._graphs: dict[Hashable, Graph] = {}
        self._names: dict[Hashable, tuple[str, ...]] = {}

    def __reduce__(self) -> tuple[type["Compiled"], tuple[()]]:
        return Compiled, ()

    def number(self, value: float, like: Tensor) -> Tensor:
        """Return a 0-D tensor, so that a graph serves every value."""
        return torch.tensor(value, dtype=torch.float64, device=like.device)

    def run(self, plan: Plan, inputs: Inputs, block: Block) -> Outcome:
        """Run the plan's graph, and make it first if there is none."""
        rows = block.gradient_rows()
        strides = tuple(row.stride() for row in rows)
        names = self._operator_names(plan, inputs)
        alike = replace(plan, uses=0.0)  # how often P is used only decides what it consists of
        key = (alike, names, block.view.shape, block.dtype, block.steps.device, strides)
        return self._graph(key, plan)(inputs, rows)

    def _operator_names(self, plan: Plan, inputs: Inputs) -> tuple[str, ...]:
        """Return what the form's operator consists of."""
        key = (plan.form, plan.uses, tuple(x.shape for x in inputs.state.values()))
        names = self._names.get(key)
        if names is None:
            shapes = {name: x.to("meta") for name, x in inputs.state.items()}
            names = self._names[key] = tuple(plan.form.prepare(shapes, plan.uses))
        return names

    def _graph(self, key: Hashable, plan: Plan) -> Graph:
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = compiled(plan)
        return graph


def compiled(plan: Plan) -> Graph:
    """Return the compiled step of a plan, with a count of recompilations of its own."""

    def run(inputs: Inputs, rows: list[Tensor]) -> Outcome:
        return step_list(plan, inputs, rows)

    # torch counts the graphs of a code object, and gives up at the ninth.
    run.__code__ = run.__code__.replace()
    return compile_function(run)


def compile_function(function: Graph) -> Graph:
    """Return a function as one graph of tensors of fixed shapes."""
    compiled: Graph = torch.compile(
        function, fullgraph=True, dynamic=False, options={"guard_filter_fn": _tensor_guards}
    )
    return compiled


def _tensor_guards(guards: Sequence[Any]) -> list[bool]:
    """Return which guards to keep: those of tensors.

    The rest of what a graph depends on is in the key that it is looked up with. To check it again
    takes almost as long as a small step.
    """
    return [guard.guard_type in _KEPT_GUARDS for guard in guards]
