"""Blocks: rows of one shape whose state is stacked once and stepped together."""

import itertools
from collections.abc import Hashable, Iterable, Iterator

import torch
from torch import Tensor

from psgd_optim.forms.base import Preconditioner
from psgd_optim.linalg import Mask, lift
from psgd_optim.types import State
from psgd_optim.views import View, gradient_of


class Block:
    """The stacked state of `B` rows of one shape, dtype and device.

    Attributes:
        view: How the parameters lie in the rows.
        form: The rows' preconditioner's form.
        state: The form's state, one row per row of the view.
        steps: (B,), how many gradients each row has used; 0 until its first non-zero one.
        extra: What other parts of the optimizer remember, with a leading axis B: the gradient
            average `momentum`, in single precision or better, and whatever a criterion keeps.
    """

    def __init__(
        self, view: View, form: Preconditioner, state: State, steps: Tensor, extra: State
    ) -> None:
        self.view = view
        self.form = form
        self.state = state
        self.steps = steps
        self.extra = extra
        self.dtype = view.like.dtype
        self._least_steps = 0  # what the host knows: every row has used at least so many gradients
        # Rows that are not known on the host to have seen a first non-zero gradient.
        self.pending = set(range(view.rows))
        self._units: list[int] | None = None  # the units of a larger block that this one copies
        self._prepared: tuple[float, list[tuple[Tensor, int]], State] | None = None

    @classmethod
    def allocate(
        cls,
        view: View,
        form: Preconditioner,
        tensors: Iterable[str] = (),
        numbers: Iterable[str] = (),
        device: torch.device | None = None,
    ) -> "Block":
        """Return a block with fresh state.

        Args:
            view: The parameters.
            form: Their preconditioner's form.
            tensors: Names of what else to keep as zeros (B, *shape).
            numbers: Names of what else to keep as zeros (B,).
            device: Where to put it; `None` is where the parameters are.

        Returns:
            The block, with `Q = I` until each row's first gradient.
        """
        like = torch.empty(0, dtype=view.like.dtype, device=device or view.like.device)
        dtype = torch.promote_types(like.dtype, torch.float32)
        steps = torch.zeros(view.rows, dtype=torch.float32, device=like.device)
        shape = (view.rows, *view.shape)
        extra = {name: torch.zeros(shape, dtype=dtype, device=like.device) for name in tensors}
        extra |= {name: torch.zeros_like(steps) for name in numbers}
        return cls(view, form, form.init(view.shape, torch.ones_like(steps), like), steps, extra)

    def wait_for(self, rows: Tensor) -> None:
        """Tell the host which rows have yet to start; reads the tensor.

        Args:
            rows: (B,), boolean.
        """
        self.pending = set(rows.nonzero().flatten().tolist())

    def operator(self, uses: float) -> State:
        """Return what the form's `apply` takes, made once for every change of the state.

        Args:
            uses: About how often it is applied until the next change.
        """
        # A tensor counts what is written to it, unless it is through `data` or NumPy, so nobody who
        # changes the state has to tell.
        if self.steps.is_inference():  # such tensors do not count
            return self.form.prepare(self.state, uses)
        now = [(x, x._version) for x in self.state.values()]
        if self._prepared is not None:
            for_uses, then, prepared = self._prepared
            same = all(x is y and v == w for (x, v), (y, w) in zip(now, then, strict=True))
            if same and uses == for_uses:
                return prepared
        return self.keep_operator(uses, self.form.prepare(self.state, uses))

    def keep_operator(self, uses: float, prepared: State) -> State:
        """Return what the form has prepared from the state as it is, and remember it."""
        if not self.steps.is_inference():
            self._prepared = (uses, [(x, x._version) for x in self.state.values()], prepared)
        return prepared

    def entries(self) -> Iterator[tuple[Tensor, State]]:
        """Yield every unit's first parameter with the state of its rows, as views of the stacks.

        Yields:
            The parameter and its state by name; a unit of one row has no axis for it.
        """
        named = {"step": self.steps, **self.extra, **self.state}
        ends = itertools.accumulate(self.view.counts)
        for unit, count, end in zip(self.view.units, self.view.counts, ends, strict=True):
            rows: int | slice = end - 1 if count == 1 else slice(end - count, end)
            yield unit[0], {self.view.prefix + name: x[rows] for name, x in named.items()}

    def units_with_gradient(self) -> list[int]:
        """Return which units have a gradient.

        Returns:
            Numbers of units, ascending.

        Raises:
            TypeError: If a gradient is sparse.
        """
        found = []
        for i, unit in enumerate(self.view.units):
            grads = [p.grad for p in unit if p.grad is not None]
            for grad in grads:
                if grad.layout != torch.strided:
                    raise TypeError(
                        f"PSGD got a sparse gradient for a parameter of shape {tuple(grad.shape)}; "
                        "build the module with sparse=False, or give it the form TouchedRows."
                    )
            if grads:
                found.append(i)
        return found

    def select(self, units: list[int]) -> "Block":
        """Return a block of some units: itself for all of them, else copies for `write_back`."""
        if len(units) == len(self.view.units):
            return self
        rows = self._rows_of(units)
        index = torch.tensor(rows, device=self.steps.device)
        part = Block(
            self.view.only(units),
            self.form,
            {name: x[index] for name, x in self.state.items()},
            self.steps[index],
            {name: x[index] for name, x in self.extra.items()},
        )
        part.pending = {i for i, row in enumerate(rows) if row in self.pending}
        part._units = units
        return part

    def write_back(self, part: "Block") -> None:
        """Copy the state of a selection back."""
        if part._units is None:
            return
        rows = self._rows_of(part._units)
        self.steps[torch.tensor(rows, device=self.steps.device)] = part.steps
        self.pending -= {row for i, row in enumerate(rows) if i not in part.pending}
        self.write_fit_back(part)

    def write_fit_back(self, part: "Block") -> None:
        """Copy what a fit after `write_back` has changed in a selection back."""
        if part._units is None:
            return
        index = torch.tensor(self._rows_of(part._units), device=self.steps.device)
        for mine, theirs in ((self.state, part.state), (self.extra, part.extra)):
            for name, x in theirs.items():
                mine[name][index] = x

    def _rows_of(self, units: list[int]) -> list[int]:
        ends = list(itertools.accumulate(self.view.counts))
        return [row for i in units for row in range(ends[i] - self.view.counts[i], ends[i])]

    def catch_up(self, decay: float) -> Tensor:
        """Bring the gradient average up to this step.

        Args:
            decay: The decay of the average in the long run.

        Returns:
            How many values are in it: a copy of `steps`, or with more of the leading axes of the
            average.
        """
        return self.steps.clone()

    def count(self, active: Mask) -> None:
        """Tell the host whether all rows were active in a step."""
        self._least_steps += active is None

    def has_ramped(self, decay: float) -> bool:
        """Whether the host knows that averages of every row with some decay are past their ramp."""
        return self._least_steps * (1 - decay) > 1

    def gather_gradients(self) -> Tensor:
        """Return a new stack of the gradients, (B, *shape), in single precision or better."""
        return lift(self.view.gather(gradient_of))

    def gradient_rows(self) -> list[Tensor]:
        """Return the gradients as rows (*shape) that are not stacked yet."""
        return self.view.lay(gradient_of)

    def gradient_strides(self) -> Hashable:
        """Return how the gradients lie in memory, and which there are."""
        return tuple(
            None if p.grad is None else p.grad.stride() for unit in self.view.units for p in unit
        )

    def empty_rows(self) -> Tensor:
        """Return a tensor of the shape, dtype and device of the stacked gradients, not filled."""
        dtype = torch.promote_types(self.dtype, torch.float32)
        shape = (self.view.rows, *self.view.shape)
        return torch.empty(shape, dtype=dtype, device=self.steps.device)

    @property
    def is_selection(self) -> bool:
        """Whether it is a copy of some rows, for one step."""
        return self._units is not None

    @property
    def is_steady(self) -> bool:
        """Whether all rows have started, and the next step will be of the same rows and shapes."""
        return not self.pending and self._units is None
