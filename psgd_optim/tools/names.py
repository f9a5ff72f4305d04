"""Hints for names that are not known."""

import difflib
from collections.abc import Sequence


def closest(name: str, known: Sequence[str]) -> str:
    """Return a hint with the nearest known name, or with all of them when none is near.

    >>> closest("adamv", ["adamw", "psgd"])
    'did you mean adamw?'
    """
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}."
