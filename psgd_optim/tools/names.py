"""Hints for names that are not known."""

import difflib
from collections.abc import Sequence

MOST_LISTED = 12


def closest(name: str, known: Sequence[str], *, listed_by: str = "--help") -> str:
    """Return a hint with the nearest known name, or with all of them when none is near.

    More than `MOST_LISTED` names are left to what lists them.

    >>> closest("adamv", ["adamw", "psgd"])
    'did you mean adamw?'
    """
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {near[0]}?"
    if len(known) > MOST_LISTED:
        return f"{listed_by} lists the known."
    return f"known: {', '.join(known)}."
