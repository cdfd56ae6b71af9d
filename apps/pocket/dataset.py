"""Pairs of a command and its action, drawn from the grammar with a seed.

The three sides, training, development and test, draw from phrases, wrappers ("could you ..."),
sentence forms and names of their own.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from apps.pocket.actions import ACTIONS
from apps.pocket.grammar import Draw, Phrase, Said, Split, Value, tidy
from apps.pocket.kinds import KINDS
from apps.pocket.phrasebook import lines_of, phrases_of
from apps.pocket.schema import Action

TEST_SEED = 20250101

HELD_OUT: tuple[Split, ...] = ("dev", "test")

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
_ASKED = ("what", "how", "where", "which", "who", "when", "is ", "are ", "do ", "will ")

# One command in twenty goes without, as in a hurry.
_ARTICLE = re.compile(r"\b(the|my|an?) (?!\{)")


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


def held_out_set(count: int, split: Split = "test") -> list[Example]:
    """The first `count` examples of a held-out set: every action in turn, no command twice."""
    draw = Draw(random.Random(TEST_SEED), split)  # noqa: S311
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
    phrase, chosen = _choose(phrases_of(draw.split)[action.name], draw)
    said = phrase.fill(chosen, draw, KINDS)
    return Example(_wrapped(said, draw), action.to_json(_split_units(said.arguments)), action.name)


def _choose(phrases: tuple[Phrase, ...], draw: Draw) -> tuple[Phrase, str]:
    """A phrase and its alternatives; training never says what is held out."""
    while True:
        phrase = draw.one(phrases)
        chosen = phrase.choose(draw)
        if draw.split != "train":
            return phrase, chosen
        if draw.chance(0.05):
            chosen = _ARTICLE.sub("", chosen)
        if chosen not in held_out_phrases():
            return phrase, chosen


@cache
def held_out_phrases() -> frozenset[str]:
    """Every choice of the alternatives of every held-out phrase, slots as they stand."""
    return frozenset(
        text
        for split in HELD_OUT
        for name in ACTIONS
        for phrase in phrases_of(split)[name]
        for text in phrase.expansions()
    )


def _split_units(values: dict[str, Value]) -> dict[str, Value]:
    """The three arguments of a conversion, which one slot says."""
    if "units" not in values:
        return values
    amount, source, goal = str(values["units"]).split()
    return {"value": float(amount) if "." in amount else int(amount), "from": source, "to": goal}


def _wrapped(said: Said, draw: Draw) -> str:
    book, training = lines_of(draw.split), draw.split == "train"
    text = said.text
    for whole, short in _SHORT.items():
        if said.question and text.startswith(whole) and draw.chance(0.4):
            text = short + text.removeprefix(whole)
    if said.question and training and text.startswith(_ASKED) and draw.chance(0.2):
        text = f"{draw.one(book['lead'])} {text}"
    if not said.question and draw.chance(0.35):
        text = f"{draw.one(book['asking'])} {text}"
    if draw.chance(0.15):
        text = f"{draw.one(book['address'])}{draw.one((' ', ', '))}{text}"
    if not said.ends_free and draw.chance(0.15) and (training or not said.question):
        text = f"{text} {draw.one(book['after'])}"
    if draw.chance(0.2):
        text += "?" if said.question and draw.chance(0.7) else "."
    return tidy(text)
