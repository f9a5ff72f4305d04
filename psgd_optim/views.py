"""Views: how the parameters of a block lie in its stack of rows (B, *shape).

A row is what a form sees as one parameter: a tensor, a piece of one, or many tensors joined into a
vector. A unit is the smallest set of rows that has or has not a gradient as a whole.
"""

import abc
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import final

import torch
from torch import Tensor

Source = Callable[[Tensor], Tensor | None]
"""Maps a parameter to a tensor of its shape, or to `None` for zeros."""


def squeezed(shape: Iterable[int]) -> tuple[int, ...]:
    """Return a shape without its axes of size 1; a single number becomes (1,).

    >>> squeezed((64, 1, 3)), squeezed(())
    ((64, 3), (1,))
    """
    return tuple(n for n in shape if n != 1) or (1,)


class View(abc.ABC):
    """The layout of a block's parameters.

    Attributes:
        shape: The shape of a row.
        units: The parameters of every unit.
        counts: How many rows every unit has.
        prefix: Before the names of state entries, where a parameter is in several views.
    """

    shape: tuple[int, ...]
    units: list[list[Tensor]]
    counts: list[int]
    prefix: str

    @abc.abstractmethod
    def only(self, units: Sequence[int]) -> "View":
        """Return the view of some units."""

    @abc.abstractmethod
    def lay(self, source: Source) -> list[Tensor]:
        """Return the rows (*shape) of what `source` maps the parameters to, not stacked."""

    def gather(self, source: Source) -> Tensor:
        """Return a new stack (B, *shape) of what `source` maps the parameters to."""
        return torch.stack(self.lay(source))

    @abc.abstractmethod
    def pairs(self, stack: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return views of the parameters, and views of a stack's rows of the same shapes."""

    @property
    def layout(self) -> Hashable:
        """How parameters of which shapes lie in the rows, whichever they are."""
        return type(self), self.shape, tuple(self.counts), tuple(p.shape for p in self.params)

    @property
    def params(self) -> list[Tensor]:
        """All parameters, in row order."""
        return [p for unit in self.units for p in unit]

    @property
    def rows(self) -> int:
        """The number of rows, B."""
        return sum(self.counts)

    @property
    def like(self) -> Tensor:
        """A parameter with the dtype and device of all."""
        return self.units[0][0]


@final
class Stacked(View):
    """Every parameter is one row; all have one shape but for axes of size 1."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        """Lay out parameters of one squeezed shape, dtype and device."""
        self.shape = squeezed(params[0].shape)
        self.units = [[p] for p in params]
        self.counts = [1] * len(params)
        self.prefix = ""

    def only(self, units: Sequence[int]) -> View:
        """Return the view of some parameters."""
        return Stacked([self.units[i][0] for i in units])

    def lay(self, source: Source) -> list[Tensor]:
        """Return the tensors, squeezed."""
        return [_or_zeros(source, p).reshape(self.shape) for p in self.params]

    def pairs(self, stack: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the parameters and their rows."""
        params = self.params
        rows = [row.view(p.shape) for row, p in zip(stack.unbind(), params, strict=True)]
        return params, rows


@final
class Joined(View):
    """All parameters are one row: their elements, one after the other."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        """Lay out parameters of one dtype and device."""
        self.shape = (sum(p.numel() for p in params),)
        self.units = [list(params)]
        self.counts = [1]
        self.prefix = ""

    def only(self, units: Sequence[int]) -> View:
        """Return this view: there is one unit."""
        return self

    def lay(self, source: Source) -> list[Tensor]:
        """Return the tensors as one row; a parameter without one counts as zero."""
        return [torch.cat([_or_zeros(source, p).flatten() for p in self.params])]

    def gather(self, source: Source) -> Tensor:
        """Return this row as a stack, without one more copy."""
        return self.lay(source)[0].unsqueeze(0)

    def pairs(self, stack: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the parameters that have a gradient, and their parts of the row."""
        params = self.params
        parts = torch.split(stack[0], [p.numel() for p in params])
        found = [(p, x.view(p.shape)) for p, x in zip(params, parts, strict=True) if _moves(p)]
        return [p for p, _ in found], [x for _, x in found]


Box = tuple[slice, ...]
"""A part of a parameter, a slice for every axis of more than one element."""


@final
class Pieces(View):
    """Parameters of any shapes are cut into rows of one shape: some of the boxes of their grids."""

    def __init__(self, pieces: Sequence[tuple[Tensor, Sequence[Box]]]) -> None:
        """Lay out boxes of one shape.

        Args:
            pieces: Parameters of one dtype and device, each with its boxes.
        """
        self._pieces = [(p, list(boxes)) for p, boxes in pieces]
        self.shape = tuple(s.stop - s.start for s in self._pieces[0][1][0])
        self.units = [[p] for p, _ in self._pieces]
        self.counts = [len(boxes) for _, boxes in self._pieces]
        self.prefix = "x".join(map(str, self.shape)) + "/"

    @property
    def layout(self) -> Hashable:
        """Which boxes of parameters of which shapes are the rows."""
        return tuple(
            (p.shape, tuple((s.start, s.stop) for box in boxes for s in box))
            for p, boxes in self._pieces
        )

    def only(self, units: Sequence[int]) -> View:
        """Return the view of the boxes of some parameters."""
        return Pieces([self._pieces[i] for i in units])

    def lay(self, source: Source) -> list[Tensor]:
        """Return the boxes of all tensors, as views of them."""
        return [
            whole[box]
            for p, boxes in self._pieces
            for whole in [_or_zeros(source, p).reshape(squeezed(p.shape))]
            for box in boxes
        ]

    def gather(self, source: Source) -> Tensor:
        """Return the boxes of all tensors, stacked."""
        tensors = [_or_zeros(source, p) for p, _ in self._pieces]
        stack = tensors[0].new_empty(self.rows, *self.shape)
        views, rows = self._aligned(tensors, stack)
        torch._foreach_copy_(rows, views)
        return stack

    def pairs(self, stack: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return views of the parameters' boxes, and of their rows."""
        return self._aligned(self.params, stack)

    def _aligned(
        self, tensors: Sequence[Tensor], stack: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return views of the boxes of tensors, and views of their rows of the same shapes.

        All boxes of a tensor are one view, if they are a grid of equal ones that fills it.
        """
        views: list[Tensor] = []
        rows: list[Tensor] = []
        parts = torch.split(stack, self.counts)
        for x, (_, boxes), part in zip(tensors, self._pieces, parts, strict=True):
            whole = x.squeeze() if x.numel() > 1 else x.reshape(1)
            if part.numel() < whole.numel():
                views += [whole[box] for box in boxes]
                rows += part.unbind()
                continue
            counts = [n // size for n, size in zip(whole.shape, self.shape, strict=True)]
            for axis, (count, size) in enumerate(zip(counts, self.shape, strict=True)):
                at = 2 * axis  # the axes before have become two
                whole = whole.view(*whole.shape[:at], count, size, *whole.shape[at + 1 :])
            axes = range(whole.ndim)
            views.append(whole.permute(*axes[::2], *axes[1::2]))  # (*counts, *shape)
            rows.append(part.view(*counts, *self.shape))
        return views, rows


@final
class Touched(View):
    """One matrix, or some of its rows: a step moves copies of them, and `commit` puts these back.

    Not squeezed: the axes mean rows and columns, however long they are.
    """

    def __init__(self, param: Tensor, index: Tensor | None = None) -> None:
        """Lay out the rows of a matrix (I, D) that an index (t,) names, or all of them."""
        self.shape = tuple(param.shape) if index is None else (len(index), *param.shape[1:])
        self.units = [[param]]
        self.counts = [1]
        self.prefix = ""
        self._index = index
        self._moved: Tensor | None = None

    def only(self, units: Sequence[int]) -> View:
        """Return this view: there is one unit."""
        return self

    def lay(self, source: Source) -> list[Tensor]:
        """Return copies of the rows of a dense tensor, (t, D)."""
        return [self._rows(_or_zeros(source, self.like))]

    def gather(self, source: Source) -> Tensor:
        """Return them as a stack, without one more copy."""
        return self.lay(source)[0].unsqueeze(0)

    def pairs(self, stack: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return copies of the rows, and the stack's one row."""
        self._moved = self._rows(self.like)
        return [self._moved], [stack[0]]

    def commit(self) -> None:
        """Write the copies that `pairs` returned into the parameter, and nothing else."""
        if self._moved is None:
            return
        if self._index is None:
            self.like.copy_(self._moved)
        else:
            self.like.index_copy_(0, self._index, self._moved)
        self._moved = None

    def _rows(self, x: Tensor) -> Tensor:
        return x.clone() if self._index is None else x.index_select(0, self._index)


def gradient_of(param: Tensor) -> Tensor | None:
    """Return the gradient of a parameter, the most usual source."""
    return param.grad


def _or_zeros(source: Source, param: Tensor) -> Tensor:
    found = source(param)
    return torch.zeros_like(param) if found is None else found


def _moves(param: Tensor) -> bool:
    return param.grad is not None
