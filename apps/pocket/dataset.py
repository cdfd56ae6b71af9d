"""Pairs of a command and its action, drawn from the grammar with a seed.

Training and test draw from phrases, wrappers ("could you ...") and names of their own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from apps.pocket.actions import ACTIONS
from apps.pocket.grammar import Draw, Said, Split, Value, tidy
from apps.pocket.kinds import KINDS
from apps.pocket.schema import Action

TEST_SEED = 20250101

# What goes before and after a command. Only an address goes before a question.
_ADDRESS = {
    "train": ("hey lutra", "lutra", "ok lutra", "hi", "hello", "hey"),
    "test": ("hello lutra", "hi lutra", "ok hey"),
}
_ASKING = {
    "train": (
        "please",
        "can you",
        "could you",
        "can you please",
        "could you please",
        "would you",
        "will you",
        "i want you to",
        "i'd like you to",
        "go ahead and",
        "now",
        "i need you to",
        "just",
    ),
    "test": (
        "would you please",
        "please can you",
        "now please",
        "you need to",
        "just please",
        "i'd want you to",
    ),
}
_AFTER = {
    "train": ("please", "thanks", "thank you", "now", "for me"),
    "test": ("thanks a lot", "for me please"),
}

# How questions and statements begin in speech.
_SHORT = {
    "what is ": "what's ",
    "where is ": "where's ",
    "how is ": "how's ",
    "who is ": "who's ",
    "i am ": "i'm ",
    "i would ": "i'd ",
    "it is ": "it's ",
}


@dataclass(frozen=True)
class Example:
    """A command as it is said, and the action as one line of JSON."""

    command: str
    action: str
    name: str


def examples(seed: int, split: Split) -> Iterator[Example]:
    """Endless examples; the same seed gives the same ones."""
    draw = Draw(random.Random(seed), split)  # noqa: S311
    actions = list(ACTIONS.values())
    shares = [action.share for action in actions]
    while True:
        yield example_of(draw.rng.choices(actions, shares)[0], draw)


def held_out_set(count: int) -> list[Example]:
    """The first `count` examples of the held-out set: every action in turn, no command twice."""
    draw = Draw(random.Random(TEST_SEED), "test")  # noqa: S311
    found: dict[str, Example] = {}
    actions = list(ACTIONS.values())
    turn = 0
    while len(found) < count:
        example = example_of(actions[turn % len(actions)], draw)
        turn += 1
        found.setdefault(example.command, example)
    return list(found.values())


def example_of(action: Action, draw: Draw) -> Example:
    """One example of an action."""
    phrase = draw.one(action.training if draw.split == "train" else action.testing)
    said = phrase.draw(draw, KINDS)
    return Example(_wrapped(said, draw), action.to_json(_split_units(said.arguments)), action.name)


def _split_units(values: dict[str, Value]) -> dict[str, Value]:
    """The three arguments of a conversion, which one slot says."""
    if "units" not in values:
        return values
    amount, source, goal = str(values["units"]).split()
    return {"value": float(amount) if "." in amount else int(amount), "from": source, "to": goal}


def _wrapped(said: Said, draw: Draw) -> str:
    text = said.text
    for whole, short in _SHORT.items():
        if said.question and text.startswith(whole) and draw.chance(0.4):
            text = short + text.removeprefix(whole)
    if not said.question and draw.chance(0.35):
        text = f"{draw.one(_ASKING[draw.split])} {text}"
    if draw.chance(0.15):
        text = f"{draw.one(_ADDRESS[draw.split])}{draw.one((' ', ', '))}{text}"
    if not said.ends_free and not said.question and draw.chance(0.15):
        text = f"{text} {draw.one(_AFTER[draw.split])}"
    if draw.chance(0.2):
        text += "?" if said.question and draw.chance(0.7) else "."
    return tidy(text)
