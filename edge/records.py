"""Dataclasses out of JSON values, held to the types that their fields are annotated with."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")


def make(kind: Callable[..., Record], values: Mapping[str, Any]) -> Record:
    """A dataclass of `values` by field; a list becomes a tuple where the field is one.

    Raises TypeError naming the field that is unknown, missing, or not of its type.
    """
    hints = _field_types(kind)
    arguments = {name: _as_tuple(value, hints.get(name)) for name, value in values.items()}
    for name, value in arguments.items():
        if name in hints and not fits(value, hints[name]):
            raise TypeError(f"{name} is {value!r}, need {_spelled(hints[name])}")
    return kind(**arguments)


def fits(value: object, hint: Any) -> bool:
    """Whether a value is of an annotated type. A float is a finite number, and True is no number.

    Knows the annotations that records here have: classes, None, unions, literals, tuples of any
    length, mappings.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(item, inner[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(fits(item, inner[1]) for item in value.values())
    if hint is float:
        largest = sys.float_info.max
        return type(value) in (int, float) and -largest <= value <= largest  # type: ignore[operator]
    if hint is int:
        return type(value) is int
    return isinstance(value, hint)


@cache
def _field_types(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _as_tuple(value: object, hint: Any) -> object:
    return tuple(value) if get_origin(hint) is tuple and isinstance(value, list) else value


def _spelled(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
