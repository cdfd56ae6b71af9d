"""What an action is: its name and its arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from apps.pocket.grammar import Value

_DAY = r"today|tomorrow|(mon|tues|wednes|thurs|fri|satur|sun)day|\d\d-\d\d"

# Kinds of arguments and what their values match. A number is one in the JSON, a change may be.
KINDS = {
    "text": r".+",
    "number": r"-?\d+(\.\d+)?",
    "time": r"([01]\d|2[0-3]):[0-5]\d",
    "duration": r"(?=.)(\d+h)?(\d+m)?(\d+s)?",
    "day": _DAY,
    "repeat": r"daily|weekdays|weekends|(mon|tues|wednes|thurs|fri|satur|sun)day",
    "state": r"on|off",
    "change": r"up|down|mute|max|\d\d?|100",
    "expression": r"[\d.+*/-]+|sqrt\(\d+\)",
    "word": r"[a-z_]+",
    "unit": r"[a-z]+",
}


@dataclass(frozen=True)
class Action:
    """One thing that the device can do.

    `arguments` are kinds by name, in the order of the JSON; a name that ends in "?" may be left
    out. `share` is how often the action is drawn, against 1 for most.
    """

    name: str
    arguments: Mapping[str, str]
    share: float = 1.0

    def to_json(self, values: Mapping[str, Value]) -> str:
        """The action as the model writes it: one line, arguments in the schema's order."""
        names = [name.removesuffix("?") for name in self.arguments]
        ordered = {name: values[name] for name in names if name in values}
        return json.dumps({"action": self.name} | ordered, ensure_ascii=False)

    def faults(self, values: Mapping[str, object]) -> list[str]:
        """What is wrong with an action's arguments, one line each."""
        kinds = {name.removesuffix("?"): kind for name, kind in self.arguments.items()}
        wrong = [f"{name}: no such argument" for name in values if name not in kinds]
        needed = [name for name in self.arguments if not name.endswith("?")]
        wrong += [f"{name}: missing" for name in needed if name not in values]
        for name, value in values.items():
            if name in kinds and not _is_valid(kinds[name], value):
                wrong.append(f"{name}: {value!r} is no {kinds[name]}")
        return wrong


def _is_valid(kind: str, value: object) -> bool:
    if kind != "change" and (kind == "number") != isinstance(value, int | float):
        return False
    return re.fullmatch(KINDS[kind], str(value)) is not None
