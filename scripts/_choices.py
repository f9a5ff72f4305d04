"""Parts of a configuration that the command line chooses by name: `--FIELD NAME`."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from psgd_optim.tools.choices import choice_name
from psgd_optim.tools.names import closest
from psgd_optim.types import InputError

Config = TypeVar("Config")

Choices = Mapping[str, Mapping[str, object]]
"""What a part can be: by the field that holds it, at any depth, and by name."""


def choose(config: Config, args: Sequence[str], choices: Choices) -> tuple[Config, list[str]]:
    """Apply every `--FIELD NAME` or `--FIELD=NAME`, outer parts before what is in them.

    The new part has the settings that its name stands for, but for those of a base class that it
    shares with the old one: they carry over.

    Args:
        config: The configuration that the flags change; the result's checks are left to whoever
            applies the other flags, as a part may not fit without them.
        args: The command line.
        choices: What there is.

    Returns:
        The changed configuration and the other arguments.

    Raises:
        InputError: If there is no such name.
    """
    return _choose(config, list(args), choices, "--")


def _choose(
    config: Config, args: list[str], choices: Choices, prefix: str
) -> tuple[Config, list[str]]:
    for field, value, known in _parts(config, choices):
        flag = prefix + field.replace("_", "-")
        part = value
        if known:
            name, args = _take(args, flag, known)
            part = value if name is None else _carry_over(value, known[name])
        part, args = _choose(part, args, choices, f"{flag}.")
        if part is not value:
            config = _changed(config, {field: part})
    return config, args


def _parts(config: object, choices: Choices) -> Iterator[tuple[str, object, Mapping[str, object]]]:
    """Yield the parts of a configuration, each with what it can be: nothing if it is no choice."""
    for field, value in vars(config).items():
        if dataclasses.is_dataclass(value):
            known = choices.get(field, {})
            kinds = {type(choice) for choice in known.values()}
            is_choice = choice_name(value) is not None and type(value) in kinds
            yield field, value, known if is_choice else {}


def _take(args: list[str], flag: str, known: Mapping[str, object]) -> tuple[str | None, list[str]]:
    """Take a flag out of the arguments, and return its last value."""
    found: str | None = None
    rest: list[str] = []
    left = iter(args)
    for arg in left:
        if arg == flag:
            found = next(left, "")
        elif arg.startswith(f"{flag}="):
            found = arg.removeprefix(f"{flag}=")
        else:
            rest.append(arg)
            continue
        if not found or found.startswith("-"):
            raise InputError(f"{flag} got no name; give one of: {', '.join(known)}.")
        if found not in known:
            raise InputError(f"There is no {flag} {found!r}; {closest(found, list(known))}")
    return found, rest


def _carry_over(old: object, new: object) -> object:
    """Return a choice with the settings of the base classes that it shares with the old one."""
    bases = [b for b in type(old).__mro__[1:] if dataclasses.is_dataclass(b) and isinstance(new, b)]
    shared = {field.name for base in bases for field in dataclasses.fields(base)}
    return _changed(new, {name: getattr(old, name) for name in shared})


def _changed(config: Config, values: Mapping[str, object]) -> Config:
    """Return a copy with other values that is not checked."""
    changed = copy.copy(config)
    for name, value in values.items():
        object.__setattr__(changed, name, value)
    return changed


def choice_flags(config: object, choices: Choices, prefix: str = "--") -> dict[str, list[str]]:
    """Return the flags that choose a part of a configuration, each with its names.

    Args:
        config: The configuration, as it is chosen so far.
        choices: What there is.
        prefix: Of the flags.

    Returns:
        Outer parts before what is in them.
    """
    flags: dict[str, list[str]] = {}
    for field, value, known in _parts(config, choices):
        flag = prefix + field.replace("_", "-")
        if known:
            flags[flag] = list(known)
        flags |= choice_flags(value, choices, f"{flag}.")
    return flags
