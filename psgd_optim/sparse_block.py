"""The block of a parameter with sparse gradients: a step copies the rows that have one, no more.

Shape legend: the parameter is (I, D), a gradient has `t` distinct rows.
"""

import warnings
from typing import final

import torch
from torch import Tensor

from psgd_optim.averages import fold_in_zeros
from psgd_optim.blocks import Block
from psgd_optim.forms.base import Preconditioner, SparseForm
from psgd_optim.types import State
from psgd_optim.views import Touched, View

_AVERAGE = "momentum"


@final
class SparseBlock(Block):
    """The state of one matrix (I, D), of which a step touches the rows with a gradient.

    Averages, ramps, weight decay and clips are those of these rows. An average is brought up to
    date when its row comes back, as if zeros had been folded in. Weights decay only in steps in
    which their row has a gradient: to shrink the others would write the whole parameter every time,
    and make a rare row's size depend on how long it has been away. The initial scale of `Q` is that
    of the first rows with a gradient.

    With a gradient average, `extra` has two more entries (1, I): `row_step`, how many values were
    in the average of a row when it last had a gradient, 0 before the first one, and `row_clock`,
    the parameter's own count of steps then.
    """

    def __init__(
        self, view: View, form: Preconditioner, state: State, steps: Tensor, extra: State
    ) -> None:
        if _AVERAGE in extra:
            like = extra[_AVERAGE]
            zeros = torch.zeros(like.shape[:2], dtype=steps.dtype, device=like.device)
            extra = {**extra, "row_step": zeros, "row_clock": zeros.clone()}
        super().__init__(view, form, state, steps, extra)
        if not isinstance(form, SparseForm):
            raise TypeError(f"A sparse block got the form {form}; give it one such as TouchedRows.")
        self.sparse_form = form
        self._has_warned = False

    def units_with_gradient(self) -> list[int]:
        """Return the one unit if it has a gradient; one without a row counts as none.

        Returns:
            `[0]` or nothing.

        Raises:
            TypeError: If the gradient is sparse in another way than in its rows.
        """
        grad = self.view.like.grad
        if grad is None:
            return []
        if grad.layout == torch.strided:
            if not self._has_warned:
                self._has_warned = True
                warnings.warn(
                    f"{self.form.name} got a dense gradient for a parameter of shape "
                    f"{tuple(grad.shape)}, as tied weights and a full softmax make it: every row "
                    "is stepped, nothing is saved.",
                    stacklevel=2,
                )
            return [0]
        if grad.layout != torch.sparse_coo or grad.sparse_dim() != 1:
            raise TypeError(
                f"{self.form.name} got a {grad.layout} gradient of shape {tuple(grad.shape)}; give "
                "one that is sparse in its rows alone, as nn.Embedding(sparse=True) does."
            )
        return [0] if grad._nnz() else []

    def select(self, units: list[int]) -> Block:
        """Return a block of the rows with a gradient: copies where a row has numbers of its own."""
        return _TouchedBlock(self)

    def write_back(self, part: Block) -> None:
        """Copy the rows of a selection back."""
        if isinstance(part, _TouchedBlock):
            part.commit()


@final
class _TouchedBlock(Block):
    """The rows of a `SparseBlock` that have a gradient.

    The form's state and what is one number per parameter are those of the whole block, not copies.
    """

    def __init__(self, whole: SparseBlock) -> None:
        """Copy what the touched rows have for themselves."""
        param = whole.view.like
        index, values = _touched(param)
        form = whole.sparse_form.at(whole.view.shape, index)
        extra = {n: x if x.ndim == 1 else x[:, index] for n, x in whole.extra.items()}
        super().__init__(Touched(param, index), form, whole.state, whole.steps, extra)
        self.pending = whole.pending
        self._whole = whole
        self._index = index
        self._values = values
        self._before = whole.steps.clone()

    def gather_gradients(self) -> Tensor:
        """Return the gradients of the rows, (1, t, D), in single precision or better."""
        dtype = torch.promote_types(self._values.dtype, torch.float32)
        # A copy, because a step changes it.
        return self._values.to(dtype, copy=True).unsqueeze(0)

    def catch_up(self, decay: float) -> Tensor:
        """Fold the zeros that the rows have missed into their averages.

        Args:
            decay: The decay of the average in the long run, also for the steps that were missed.

        Returns:
            (1, t), how many values are in each row's average; (1,) if there is none.
        """
        if _AVERAGE not in self.extra:
            return self.steps.clone()
        steps, clock, average = (self.extra[n] for n in ("row_step", "row_clock", _AVERAGE))
        after, factor = fold_in_zeros(steps, self.steps - clock, decay)
        average.mul_(factor.unsqueeze(2).to(average.real.dtype))
        self.extra["row_step"] = after
        return after

    @property
    def is_steady(self) -> bool:
        """Return no: every step touches other rows."""
        return False

    def commit(self) -> None:
        """Write the rows into the parameter and the whole block; all others keep their bits."""
        if isinstance(self.view, Touched):
            self.view.commit()
        self._whole.pending = self.pending
        if _AVERAGE not in self.extra:
            return
        taken = self.steps - self._before  # (1,), 0 where the gradient was not finite
        self.extra["row_step"] = self.extra["row_step"] + taken
        self.extra["row_clock"] = self.steps.expand(self.extra["row_step"].shape)
        for name in (_AVERAGE, "row_step", "row_clock"):
            self._whole.extra[name].index_copy_(1, self._index, self.extra[name])


def _touched(param: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows that have a gradient, (t,), and their gradients, (t, D)."""
    grad = param.grad
    if grad is None:
        raise ValueError("A parameter without a gradient has no touched rows.")
    if grad.layout == torch.strided:
        return torch.arange(len(param), device=param.device), grad
    grad = grad.coalesce()
    # A copy, because a fit may read it after the gradient has gone on to something else.
    return grad.indices()[0].clone(), grad.values()
