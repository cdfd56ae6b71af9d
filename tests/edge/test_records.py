from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from edge.records import make


@dataclass(frozen=True)
class Inner:
    size: int


@dataclass(frozen=True)
class Outer:
    name: str
    share: float
    count: int | None
    kind: Literal["a", "b"]
    ids: tuple[int, ...]
    texts: Mapping[str, str]
    inner: tuple[Inner, ...] = ()
    anything: Any = None


GOOD: dict[str, Any] = {
    "name": "x",
    "share": 0.5,
    "count": None,
    "kind": "a",
    "ids": [1, 2],
    "texts": {"k": "v"},
}


def test_lists_become_tuples_and_the_rest_stays() -> None:
    inner = Inner(3)
    made = make(Outer, {**GOOD, "inner": [inner], "anything": [1]})
    assert made == Outer("x", 0.5, None, "a", (1, 2), {"k": "v"}, (inner,), [1])
    assert make(Outer, {**GOOD, "share": 1}).share == 1


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("name", [None, 1, ["x"]]),
        ("share", ["0.5", None, True, float("nan"), float("inf"), 10**400, [0.5]]),
        ("count", ["1", 1.0, True, []]),
        ("kind", ["c", None, 1, ["a"]]),
        ("ids", [1, "12", [1, "2"], [1.0], {"1": 2}, None]),
        ("texts", [[], {"k": 1}, "kv", None]),
        ("inner", [[{"size": 1}], Inner(1)]),
    ],
)
def test_a_value_of_another_type_is_named(name: str, values: list[object]) -> None:
    for value in values:
        with pytest.raises(TypeError, match=f"^{name} is .*, need "):
            make(Outer, {**GOOD, name: value})


def test_unknown_and_missing_fields_are_named() -> None:
    with pytest.raises(TypeError, match="surprise"):
        make(Outer, {**GOOD, "surprise": 1})
    with pytest.raises(TypeError, match="name"):
        make(Outer, {name: value for name, value in GOOD.items() if name != "name"})
