"""Configurations whose parts are chosen by name: to JSON values and back.

A part is a choice if it is a dataclass with a `name: ClassVar[str]`; in JSON, the name stands
beside its fields.
"""

import json
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from psgd_optim.tools.names import closest
from psgd_optim.types import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


def choice_name(value: object) -> str | None:
    """Return the name of a choice, a class or a value; `None` for anything else."""
    kind = value if isinstance(value, type) else type(value)
    if not is_dataclass(kind) or "name" in {field.name for field in fields(kind)}:
        return None
    name = getattr(kind, "name", None)
    return name if isinstance(name, str) else None


def config_to_dict(config: "DataclassInstance") -> dict[str, Any]:
    """Return a configuration as JSON values; every choice in it has its name as a key.

    Args:
        config: A dataclass, possibly with dataclasses in its fields.

    Returns:
        The nested dict.
    """
    name = choice_name(config)
    values = {field.name: _plain(getattr(config, field.name)) for field in fields(config)}
    return values if name is None else {"name": name, **values}


def _plain(value: object) -> Any:  # noqa: ANN401 -- a JSON value
    if is_dataclass(value) and not isinstance(value, type):
        return config_to_dict(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return json.loads(json.dumps(value, default=str))


def config_from_dict(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """Return the configuration that `config_to_dict` made JSON values of.

    Settings that are missing take their defaults.

    Args:
        kind: The configuration's class; its annotations say what the values mean.
        values: Fields, and the name if it is a choice.

    Returns:
        The configuration.

    Raises:
        InputError: If it is of another choice, or has settings that the class does not know.
    """
    own = choice_name(kind)
    given = dict(values)
    if own is not None and given.pop("name", own) != own:
        raise InputError(f"Got the settings of {values['name']}, not of {own}; train again.")
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind) if field.init]
    for key in given:
        if key not in known:
            raise InputError(
                f"{own or kind.__name__} was saved with the setting {key}, which this version does "
                "not know; train again, or use the version that saved it."
            )
    return kind(**{key: _read(hints[key], value) for key, value in given.items()})


def choice_from_dict(choices: Mapping[str, Config], values: Mapping[str, Any]) -> Config:
    """Return a choice that `config_to_dict` made JSON values of.

    Args:
        choices: What there is, by name.
        values: Fields, and the name.

    Returns:
        The choice.

    Raises:
        InputError: If there is none of that name, or it does not know the settings.
    """
    kinds = {choice_name(choice): type(choice) for choice in choices.values()}
    return config_from_dict(_named(list(kinds.values()), values), values)


def _named(kinds: list[type[Config]], values: Mapping[str, Any]) -> type[Config]:
    """Return the class with the name that the values have."""
    by_name = {str(choice_name(kind)): kind for kind in kinds}
    name = values.get("name")
    if name not in by_name:
        hint = closest(str(name), list(by_name))
        raise InputError(f"A saved configuration has a part named {name}; {hint}")
    return by_name[name]


def _read(hint: Any, value: Any) -> Any:  # noqa: ANN401 -- an annotation, a JSON value
    """Return a JSON value as its annotation has it."""
    origin = get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        members = [member for member in get_args(hint) if member is not types.NoneType]
        if value is None:
            return None
        kinds: list[Any] = [member for member in members if is_dataclass(member)]
        if kinds and isinstance(value, Mapping):
            return config_from_dict(_named(kinds, value) if len(kinds) > 1 else kinds[0], value)
        return _read(members[0], value)
    if origin is tuple:
        inner = get_args(hint)
        repeated = len(inner) == 2 and inner[1] is Ellipsis
        each = [inner[0]] * len(value) if repeated else inner
        return tuple(_read(h, v) for h, v in zip(each, value, strict=True))
    if isinstance(hint, type) and is_dataclass(hint):
        return config_from_dict(hint, value)
    return Path(value) if hint is Path else value
