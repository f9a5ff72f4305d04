"""Scopes: which parameters a form sees together, and as what.

A scope arranges the parameters of a group into views, each with the form of its rows. A bare form
sees every parameter as a tensor of its own (`PerTensor`).
"""

import abc
import fnmatch
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from psgd_optim.forms.base import Preconditioner, SparseForm
from psgd_optim.views import Box, Joined, Pieces, Stacked, Touched, View, squeezed

MOST_STACKED = 1 << 22
"""Numbers in one stack on a CPU, unless a single parameter has more.

A larger one leaves the caches between any two operations of a step, and every new tensor of its
size is fresh memory, whose page faults take longer than its arithmetic.
"""

Named = tuple[str, Tensor]
"""A parameter with its name, "" where the optimizer was given none."""

Arrangement = list[tuple[View, Preconditioner]]
"""The views of a group's parameters, each with the form of its rows."""

Rule = Callable[[str, Tensor], bool]
"""Whether a form is for the parameter of this name."""

Wanted = Callable[[Tensor], bool]
"""Whether a parameter is to be arranged."""


def _any(param: Tensor) -> bool:
    return True


class Scope(abc.ABC):
    """Arranges the parameters of a group; concrete scopes are final frozen dataclasses."""

    @property
    @abc.abstractmethod
    def layout(self) -> str:
        """What the numbers of the state mean, beyond their shapes: saved, and compared on load."""

    @abc.abstractmethod
    def arrange(self, params: Sequence[Named], wanted: Wanted = _any) -> Arrangement:
        """Return views of some parameters, and their forms.

        Args:
            params: The parameters of a group, with at least one element each.
            wanted: Which of them; a scope that joins parameters takes all of them if it takes one.
        """


@final
@dataclass(frozen=True)
class PerTensor(Scope):
    """Every parameter is one tensor to the form; equal shapes share a stack.

    A form that keeps sparse gradients sparse gets every parameter in a stack of its own.

    Args:
        form: The form of every parameter.
    """

    form: Preconditioner

    @property
    def layout(self) -> str:
        """The form's."""
        return self.form.layout

    def arrange(self, params: Sequence[Named], wanted: Wanted = _any) -> Arrangement:
        """Return one view per squeezed shape, dtype and device."""
        chosen = [p for _, p in params if wanted(p)]
        if isinstance(self.form, SparseForm):
            return [(Touched(p), self.form) for p in chosen]
        groups = _grouped(chosen, lambda p: squeezed(p.shape))
        return [(Stacked(some), self.form) for group in groups for some in _portions(group)]


@final
@dataclass(frozen=True)
class Joint(Scope):
    """All parameters of the group are one vector to the form, in the order they were given.

    Parameters of different dtypes or devices make a vector each. A parameter without a gradient,
    frozen ones included, counts as one with a zero gradient, and does not move.

    Args:
        form: The form of the vector.

    Raises:
        ValueError: If the form is one that keeps sparse gradients sparse.

    Source: S2, the "black box" use of its preconditioners.
    """

    form: Preconditioner

    def __post_init__(self) -> None:
        _refuse_sparse(self.form, "Joint")

    @property
    def layout(self) -> str:
        """The form's, joint."""
        return f"Joint({self.form.layout})"

    def arrange(self, params: Sequence[Named], wanted: Wanted = _any) -> Arrangement:
        """Return one view per dtype and device."""
        groups = _grouped((p for _, p in params), lambda p: ())
        return [(Joined(group), self.form) for group in groups if any(map(wanted, group))]


@final
@dataclass(frozen=True)
class Split(Scope):
    """Axes longer than a size are cut into equal pieces, and every piece is one tensor to the form.

    An axis of `n` gets `ceil(n / size)` pieces that differ in size by at most one, so that nothing
    is padded. Pieces of one shape share a stack, whatever parameters they are from: where the size
    divides most axes, a whole model is one or two stacks.

    Args:
        form: The form of every piece.
        size: Longest axis of a piece.

    Raises:
        ValueError: If the size is below 1, or the form is one that keeps sparse gradients sparse.
    """

    form: Preconditioner
    size: int

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 1:
            raise ValueError(f"Split got the size {self.size}; give a whole number from 1 on.")
        _refuse_sparse(self.form, "Split")

    @property
    def layout(self) -> str:
        """The form's, split."""
        return f"Split({self.form.layout}, {self.size})"

    def arrange(self, params: Sequence[Named], wanted: Wanted = _any) -> Arrangement:
        """Return a view for every shape of a piece, whatever parameter it is from."""
        found: Arrangement = []
        # A parameter's pieces of all shapes are in one portion, so that a resumed run stacks them
        # as they were.
        for some in _portions([p for _, p in params if wanted(p)]):
            views: dict[Hashable, list[tuple[Tensor, list[Box]]]] = {}
            for p in some:
                for shape, boxes in self._boxes(p).items():
                    views.setdefault((shape, p.dtype, p.device), []).append((p, boxes))
            found += [(Pieces(pieces), self.form) for pieces in views.values()]
        return found

    def _boxes(self, param: Tensor) -> dict[tuple[int, ...], list[Box]]:
        """Return the boxes of a parameter by shape."""
        boxes: dict[tuple[int, ...], list[Box]] = {}
        for box in itertools.product(*(_cut(n, self.size) for n in squeezed(param.shape))):
            boxes.setdefault(tuple(s.stop - s.start for s in box), []).append(box)
        return boxes


@final
@dataclass(frozen=True)
class DirectSum(Scope):
    """Different parameters get different forms: the first whose rule holds.

    Args:
        *rules: Pairs of a rule and what it chooses, a form or a scope.
        otherwise: What parameters get for which no rule holds.

    Example:
        >>> from psgd_optim import Diagonal, Kron
        >>> scope = DirectSum((by_name("*.bias"), Diagonal()), otherwise=Kron())

    Source: S0 C.3, direct sums of groups.
    """

    rules: tuple[tuple[Rule, Preconditioner | Scope], ...]
    otherwise: Preconditioner | Scope

    def __init__(
        self, *rules: tuple[Rule, Preconditioner | Scope], otherwise: Preconditioner | Scope
    ) -> None:
        for rule, choice in (*rules, (by_axes(0), otherwise)):
            as_scope(choice)
            if not callable(rule):
                raise TypeError(
                    f"DirectSum got the rule {rule!r}; give by_name('*.bias'), by_axes(2), or a "
                    "function of a parameter's name and the parameter."
                )
        object.__setattr__(self, "rules", rules)
        object.__setattr__(self, "otherwise", otherwise)

    @property
    def layout(self) -> str:
        """Those of all choices."""
        choices = (*(choice for _, choice in self.rules), self.otherwise)
        return f"DirectSum({', '.join(as_scope(choice).layout for choice in choices)})"

    def arrange(self, params: Sequence[Named], wanted: Wanted = _any) -> Arrangement:
        """Return what the chosen scopes return."""
        chosen: list[list[Named]] = [[] for _ in range(len(self.rules) + 1)]
        for name, p in params:
            held = (i for i, (rule, _) in enumerate(self.rules) if rule(name, p))
            chosen[next(held, len(self.rules))].append((name, p))
        choices = (*(choice for _, choice in self.rules), self.otherwise)
        found: Arrangement = []
        for choice, group in zip(choices, chosen, strict=True):
            found += as_scope(choice).arrange(group, wanted)
        return found


def by_name(pattern: str) -> Rule:
    """Return the rule for names that match a shell pattern, such as `*.bias`.

    Args:
        pattern: With `*`, `?` and `[...]`.

    Returns:
        A rule; it raises a `ValueError` for parameters without names.
    """
    return _ByName(pattern)


def by_axes(least: int, most: float = math.inf) -> Rule:
    """Return the rule for parameters whose number of axes longer than 1 is within bounds."""
    return _ByAxes(least, most)


# Rules are values, not functions in functions, so that an optimizer with them can be pickled.
@dataclass(frozen=True)
class _ByName:
    pattern: str

    def __call__(self, name: str, param: Tensor) -> bool:
        if not name:
            raise ValueError(
                f"by_name({self.pattern!r}) got a parameter of shape {tuple(param.shape)} without "
                "a name; give the optimizer model.named_parameters()."
            )
        # torch.compile puts a name of its own in front of every parameter of a module.
        return fnmatch.fnmatchcase(name.replace("_orig_mod.", ""), self.pattern)


@dataclass(frozen=True)
class _ByAxes:
    least: int
    most: float

    def __call__(self, name: str, param: Tensor) -> bool:
        return self.least <= sum(n != 1 for n in param.shape) <= self.most


def as_scope(form: object) -> Scope:
    """Return a scope as it is, and a form as one that sees every tensor by itself.

    Args:
        form: A scope or a form.

    Returns:
        The scope.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(form, Scope):
        return form
    if isinstance(form, Preconditioner):
        return PerTensor(form)
    raise TypeError(f"PSGD got form = {form!r}; give a form such as Kron(), or a scope of one.")


def _refuse_sparse(form: Preconditioner, scope: str) -> None:
    if isinstance(form, SparseForm):
        raise ValueError(
            f"{scope} got the form {form.name}, whose rows must stay those of one matrix; give "
            "these parameters the bare form."
        )


def _grouped(params: Iterable[Tensor], key: Callable[[Tensor], Hashable]) -> list[list[Tensor]]:
    """Return parameters of equal key, dtype and device together, in order of appearance."""
    groups: dict[tuple[Hashable, torch.dtype, torch.device], list[Tensor]] = {}
    for p in params:
        groups.setdefault((key(p), p.dtype, p.device), []).append(p)
    return list(groups.values())


def _portions(params: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return parameters in portions that a stack should hold: on a CPU, what its caches hold."""
    portions: list[list[Tensor]] = []
    size = 0
    for p in params:
        if not portions or (p.device.type == "cpu" and size + p.numel() > MOST_STACKED):
            portions.append([])
            size = 0
        portions[-1].append(p)
        size += p.numel()
    return portions


def _cut(n: int, size: int) -> list[slice]:
    """Return slices that cut an axis into the fewest pieces of at most a size."""
    count = math.ceil(n / size)
    edges = [n * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]
