"""Blocks: same-shaped parameters whose state is stacked once and stepped together."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from psgd_optim.forms.base import Preconditioner
from psgd_optim.linalg import per_block
from psgd_optim.types import State


def squeezed(shape: Iterable[int]) -> tuple[int, ...]:
    """Return a shape without its axes of size 1; a single number becomes (1,).

    >>> squeezed((64, 1, 3)), squeezed(())
    ((64, 3), (1,))
    """
    return tuple(n for n in shape if n != 1) or (1,)


def stackable(params: Iterable[Tensor]) -> list[list[Tensor]]:
    """Return the parameters that can share a block, in order of first appearance.

    Args:
        params: Parameters; those without elements are left out.

    Returns:
        Lists of one squeezed shape, dtype and device.
    """
    stacks: dict[tuple[object, ...], list[Tensor]] = {}
    for p in params:
        if p.numel():
            stacks.setdefault((squeezed(p.shape), p.dtype, p.device), []).append(p)
    return list(stacks.values())


class Block:
    """The stacked state of `B` parameters of one squeezed shape, dtype and device.

    Attributes:
        params: The parameters, in row order.
        form: Their preconditioner's form.
        state: The form's state, one row per parameter.
        steps: (B,), how many gradients each row has used; 0 until its first non-zero one.
        momentum: (B, *shape), the gradient average, in single precision or better, or `None`.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        form: Preconditioner,
        state: State,
        steps: Tensor,
        momentum: Tensor | None,
    ) -> None:
        self.params = list(params)
        self.form = form
        self.state = state
        self.steps = steps
        self.momentum = momentum
        # Rows that are not known on the host to have seen a first non-zero gradient.
        self.pending = set(range(len(self.params)))
        self._rows: list[int] | None = None  # the rows of a larger block that this one copies

    @classmethod
    def allocate(cls, params: Sequence[Tensor], form: Preconditioner, *, momentum: bool) -> "Block":
        """Return a block with fresh state.

        Args:
            params: Parameters of one squeezed shape, dtype and device.
            form: Their preconditioner's form.
            momentum: Whether to keep a gradient average.

        Returns:
            The block, with `Q = I` until each parameter's first gradient.
        """
        like = params[0]
        dtype = torch.promote_types(like.dtype, torch.float32)
        shape = squeezed(like.shape)
        steps = torch.zeros(len(params), dtype=torch.float32, device=like.device)
        average = (
            torch.zeros(len(params), *shape, dtype=dtype, device=like.device) if momentum else None
        )
        return cls(params, form, form.init(shape, torch.ones_like(steps), like), steps, average)

    def rows(self) -> list[State]:
        """Return every parameter's state by name, as views of the stacks."""
        rows: list[State] = []
        for i, param in enumerate(self.params):
            row = {"step": self.steps[i], **{name: x[i] for name, x in self.state.items()}}
            if self.momentum is not None:
                row["momentum"] = self.momentum[i].view(param.shape)
            rows.append(row)
        return rows

    def rows_with_gradient(self) -> list[int]:
        """Return which parameters have a gradient.

        Returns:
            Row numbers, ascending.

        Raises:
            TypeError: If a gradient is sparse.
        """
        rows = []
        for i, p in enumerate(self.params):
            if p.grad is not None:
                if p.grad.layout != torch.strided:
                    raise TypeError(
                        f"PSGD got a sparse gradient for a parameter of shape {tuple(p.shape)}; "
                        "build the module with sparse=False."
                    )
                rows.append(i)
        return rows

    def select(self, rows: list[int]) -> "Block":
        """Return a block of some rows: itself for all of them, else copies for `write_back`."""
        if len(rows) == len(self.params):
            return self
        index = torch.tensor(rows, device=self.steps.device)
        momentum = None if self.momentum is None else self.momentum[index]
        state = {name: x[index] for name, x in self.state.items()}
        params = [self.params[i] for i in rows]
        part = Block(params, self.form, state, self.steps[index], momentum)
        part.pending = {i for i, row in enumerate(rows) if row in self.pending}
        part._rows = rows
        return part

    def write_back(self, part: "Block") -> None:
        """Copy the state of a selection back."""
        if part._rows is None:
            return
        index = torch.tensor(part._rows, device=self.steps.device)
        self.steps[index] = part.steps
        if self.momentum is not None and part.momentum is not None:
            self.momentum[index] = part.momentum
        for name, x in part.state.items():
            self.state[name][index] = x
        self.pending -= {row for i, row in enumerate(part._rows) if i not in part.pending}

    def gather(self) -> Tensor:
        """Return a new stack of the gradients, (B, *shape), in single precision or better."""
        shape = squeezed(self.params[0].shape)
        grads = [p.grad.reshape(shape) for p in self.params if p.grad is not None]
        stack = torch.stack(grads)
        return stack.to(torch.promote_types(stack.dtype, torch.float32))

    def average(self, grads: Tensor, active: Tensor, momentum: float) -> Tensor:
        """Fold gradients into the average `m <- b m + (1 - b) g` with `b = min(t / (t + 1), b)`.

        Args:
            grads: (B, *shape), finite.
            active: (B,), 1 for rows that take part, 0 for rows to leave alone.
            momentum: The decay `b` in the long run.

        Returns:
            (B, *shape), the average, not to be changed; the gradients when none is kept.
        """
        if self.momentum is None:
            return grads
        before = self.steps - active  # `steps` already counts this gradient
        decay = (before / (before + 1)).clamp(max=momentum)
        weight = (active * (1 - decay)).to(grads.real.dtype)
        return self.momentum.lerp_(grads, per_block(weight, grads).to(grads.dtype))

    def scatter(self, updates: Tensor, lr: float | Tensor, weight_decay: float) -> None:
        """Take the step `p <- (1 - lr decay) p - lr u`.

        Args:
            updates: (B, *shape); overwritten.
            lr: Step size.
            weight_decay: Decoupled decay rate.
        """
        if weight_decay != 0:
            torch._foreach_mul_(self.params, 1 - lr * weight_decay)
        updates.mul_(-lr)
        rows = [row.view(p.shape) for row, p in zip(updates.unbind(), self.params, strict=True)]
        torch._foreach_add_(self.params, rows)
