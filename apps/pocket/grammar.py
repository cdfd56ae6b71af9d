"""Phrases with alternatives and slots, and the drawing of one at random.

    (wake me up|get me up) at {time:time} {repeat:repeat}

`(a|b|)` is one of its parts, `{argument:kind}` a slot of that kind, whose value becomes the
argument. `-> state=on; text=Yes.` after a phrase are arguments that it always has; `{argument}` in
one is what was said there, and an argument that begins with `_` is left out of the action. A phrase
that begins with `!` is a question or a statement, which "can you" does not go before.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

Split = Literal["train", "dev", "test"]
Value = str | int | float
T = TypeVar("T")

_PIECE = re.compile(r"\{(\w+):(\w+)\}|([^{}]+)")


@dataclass(frozen=True)
class Slot:
    """What is said in a slot, and the value it stands for. `free` text has no end of its own."""

    said: str
    value: Value
    free: bool = False


@dataclass(frozen=True)
class Draw:
    """A source of random choices for one side of the split."""

    rng: random.Random
    split: Split

    def one(self, options: tuple[T, ...] | list[T]) -> T:
        return options[int(self.rng.random() * len(options))]

    def chance(self, share: float) -> bool:
        return self.rng.random() < share


Kinds = Mapping[str, Callable[[Draw], Slot]]


@dataclass(frozen=True)
class Said:
    """A phrase with its slots filled."""

    text: str
    arguments: dict[str, Value]
    question: bool
    ends_free: bool


@dataclass(frozen=True)
class Phrase:
    """One line of a grammar, parsed."""

    source: str
    pattern: str
    fixed: tuple[tuple[str, str], ...] = field(default=())
    question: bool = False

    @staticmethod
    def parse(source: str) -> Phrase:
        pattern, _, tail = source.partition("->")
        fixed = [part.partition("=") for part in tail.split(";") if part.strip()]
        pairs = tuple((name.strip(), text.strip()) for name, _, text in fixed)
        question = pattern.startswith("!")
        return Phrase(source, pattern.removeprefix("!").strip(), pairs, question)

    def choose(self, draw: Draw) -> str:
        """The phrase with one alternative of every group, slots as they stand."""
        return tidy(choose(self.pattern, draw))

    def fill(self, chosen: str, draw: Draw, kinds: Kinds) -> Said:
        """Fill the slots of what `choose` gave."""
        said: list[str] = []
        slots: dict[str, Slot] = {}
        for match in _PIECE.finditer(chosen):
            name, kind, text = match.groups()
            if kind:
                slots[name] = kinds[kind](draw)
                text = slots[name].said
            said.append(text)
        values = {name: slot.value for name, slot in slots.items() if name[0] != "_"}
        spoken = {name: slot.said for name, slot in slots.items()}
        fixed = {name: _value(text.format_map(spoken)) for name, text in self.fixed}
        last = re.search(r"\{(\w+):\w+\}$", chosen)
        ends_free = last is not None and slots[last[1]].free
        return Said(tidy("".join(said)), values | fixed, self.question, ends_free)

    def expansions(self) -> Iterator[str]:
        """Every choice of the alternatives, slots as they stand."""
        return (tidy(text) for text in expand(self.pattern))


def _value(text: str) -> Value:
    return int(text) if text.isdigit() else text


def words(text: str) -> tuple[str, ...]:
    """A pool of words."""
    return tuple(text.split())


def tidy(text: str) -> str:
    """One space between words, none before a comma or at the ends."""
    return " ".join(text.split()).replace(" ,", ",")


def choose(pattern: str, draw: Draw) -> str:
    """The pattern with one alternative of every group."""
    while (group := _innermost(pattern)) is not None:
        start, end = group
        pattern = (
            pattern[:start] + draw.one(pattern[start + 1 : end].split("|")) + pattern[end + 1 :]
        )
    return pattern


def expand(pattern: str) -> Iterator[str]:
    """The pattern with every alternative of every group."""
    group = _innermost(pattern)
    if group is None:
        yield pattern
        return
    start, end = group
    for option in pattern[start + 1 : end].split("|"):
        yield from expand(pattern[:start] + option + pattern[end + 1 :])


def _innermost(pattern: str) -> tuple[int, int] | None:
    """Where the first group that holds no other begins and ends."""
    end = pattern.find(")")
    return None if end < 0 else (pattern.rindex("(", 0, end), end)
