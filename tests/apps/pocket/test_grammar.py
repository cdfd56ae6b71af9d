"""Phrases: parsing, choosing, filling."""

from __future__ import annotations

import random

from apps.pocket.grammar import Draw, Phrase, Said, Slot, choose, expand

KINDS = {
    "when": lambda draw: Slot("half past six", "06:30"),
    "what": lambda draw: Slot("x", "x", True),
}


def draw(seed: int = 0) -> Draw:
    return Draw(random.Random(seed), "train")


def fill(source: str, seed: int = 0) -> Said:
    phrase = Phrase.parse(source)
    return phrase.fill(phrase.choose(draw(seed)), draw(seed), KINDS)


def test_expand_gives_every_choice_of_nested_groups() -> None:
    assert list(expand("a (b|c (d|e)|) f")) == [
        "a b f",
        "a c d f",
        "a  f",
        "a b f",
        "a c e f",
        "a  f",
    ]


def test_choose_gives_one_of_the_expansions() -> None:
    pattern = "(wake (me|us)|get up) (now|)"
    chosen = {choose(pattern, draw(seed)) for seed in range(60)}
    assert chosen == set(expand(pattern))


def test_a_slot_is_said_and_its_value_is_the_argument() -> None:
    said = fill("wake me at {time:when} -> label=Up at {time}; level=3")
    assert said.text == "wake me at half past six"
    assert said.arguments == {"time": "06:30", "label": "Up at half past six", "level": 3}
    assert not said.question
    assert not said.ends_free


def test_a_hidden_slot_is_no_argument() -> None:
    said = fill("!about {_thing:what} -> text=Enjoy the {_thing}.")
    assert said.arguments == {"text": "Enjoy the x."}
    assert said.question
    assert said.ends_free


def test_spaces_are_tidied_where_an_option_is_empty() -> None:
    assert fill("(please|) stop (now|), (do|)", 3).text.count("  ") == 0
    assert "stop, do" in set(Phrase.parse("stop (now|), do").expansions())
