"""The files in phrases/: what is said, by side of the split, and the words that texts are made of.

A file has sections, `[set_alarm]`, of one phrase or a few words a line. What stands after the name
of a section goes after its every phrase. `@make = (set|put)` names alternatives that stand wherever
`@make` does. Words of which one has a space have `|` between them.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from apps.pocket.grammar import Phrase, Split

_FOLDER = Path(__file__).parent / "phrases"


def lines_of(split: Split) -> dict[str, tuple[str, ...]]:
    """The lines of one side's file by section."""
    return _read(split)


@cache
def phrases_of(split: Split) -> dict[str, tuple[Phrase, ...]]:
    """The same, parsed as phrases."""
    sections = lines_of(split)
    return {name: tuple(map(Phrase.parse, lines)) for name, lines in sections.items()}


@cache
def words_of(section: str) -> tuple[str, ...]:
    """A pool of words or names; one may be in it twice."""
    lines = _read("words")[section]
    return tuple(word for line in lines for word in line.split("|" if "|" in line else None))


@cache
def _read(name: str) -> dict[str, tuple[str, ...]]:
    named: dict[str, str] = {}
    sections: dict[str, list[str]] = {}
    for line in (_FOLDER / f"{name}.txt").read_text().splitlines():
        if line.startswith("@") and " = " in line:
            key, _, alternatives = line.removeprefix("@").partition(" = ")
            named[key] = alternatives
        elif line.startswith("["):
            section, _, tail = line.removeprefix("[").partition("]")
            lines = sections.setdefault(section, [])
        elif line and not line.startswith("#"):
            lines.append(re.sub(r"@(\w+)", lambda match: named[match[1]], line) + tail)
    return {name: tuple(lines) for name, lines in sections.items()}
