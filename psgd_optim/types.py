"""The small types that every layer shares.

Shape legend, used in every shape comment of the package: `B` is the number of same-shaped
parameters stacked in one block, `n` (or `n_1 .. n_k`) the size of an axis, `N` the number of
elements of one parameter, `r` a rank or the number of rows of a random probe.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import UnionType

from torch import Tensor

State = dict[str, Tensor]
"""Everything a form remembers: a flat dict of tensors, each with a leading block axis `B`."""

Schedule = Callable[[int], float]
"""A value as a function of the step, which counts from 0."""

Rate = float | Schedule
"""A number, or a number as a function of the step."""


def expect(owner: str, name: str, value: object, kind: type | UnionType, example: str) -> None:
    """Refuse an argument of the wrong type.

    Args:
        owner: What got it, for the message.
        name: The argument.
        value: What it got.
        kind: The type it must be an instance of.
        example: What to give, for the message.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{owner} got {name} = {value!r}; give {example}.")


class InputError(ValueError):
    """Input from a person that cannot be used; its one-line message names the way out."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One sample of the pair that a preconditioner is fitted to.

    A form lowers `E[h^H P h + v^H P^-1 v]`; this record is all that it learns from a criterion.

    Args:
        h: (B, *shape), the sample in gradient units: a gradient, a momentum, or a
            Hessian-vector product.
        v: (B, *shape), the probe that `h` is the image of, or `None` when `h` does not depend
            on it, in which case the form integrates a standard normal `v` out.
        image: (B, *shape), `P h` where it is known already: it saves a form the products.
    """

    h: Tensor
    v: Tensor | None = None
    image: Tensor | None = None
