"""Checks of arguments that the optimizers share: what was got, what is allowed."""

import math
from collections.abc import Callable

from torch import Tensor

from psgd_optim.types import InputError

ONE_PROCESS = "train in one process, outside of torch.distributed"
"""What to do where an optimizer differentiates the loss itself, for messages."""


def check_number(name: str, x: object, told: str, is_allowed: Callable[[float], bool]) -> None:
    """Refuse what is no number, or one outside a range.

    Args:
        name: Of the argument.
        x: What was got.
        told: What is allowed, for the message.
        is_allowed: Whether a number is in the range; false of one that is not a number.

    Raises:
        InputError: If it is refused.
    """
    if isinstance(x, bool) or not isinstance(x, int | float) or not is_allowed(x):
        raise InputError(f"Got {name} = {x!r}; give {told}.")


def check_rate(name: str, x: object) -> None:
    """Refuse what is no finite number of at least 0, and no tensor with one element.

    Args:
        name: Of the argument.
        x: What was got; the number in a tensor may be on a device, and is not looked at.

    Raises:
        InputError: If it is refused.
    """
    if isinstance(x, Tensor):
        if x.numel() != 1:
            raise InputError(f"Got an {name} of shape {tuple(x.shape)}; give one number.")
    else:
        check_number(name, x, "a number of at least 0", lambda x: 0 <= x < math.inf)


def check_integer(name: str, x: object, least: float = -math.inf) -> None:
    """Refuse what is no integer, or too small a one.

    Args:
        name: Of the argument.
        x: What was got.
        least: The smallest that is allowed.

    Raises:
        InputError: If it is refused.
    """
    if isinstance(x, bool) or not isinstance(x, int) or x < least:
        told = "" if least == -math.inf else f" of at least {least}"
        raise InputError(f"Got {name} = {x!r}; give an integer{told}.")
