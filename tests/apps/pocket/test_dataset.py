"""The generated commands: valid actions, and a test set that shares nothing with training."""

from __future__ import annotations

import itertools
import json
import random
import re

import pytest

from apps.pocket import dataset, names
from apps.pocket.actions import ACTIONS
from apps.pocket.dataset import HELD_OUT, example_of, examples, held_out_phrases, held_out_set
from apps.pocket.grammar import Draw, Phrase, Split, expand
from apps.pocket.kinds import KINDS
from apps.pocket.phrasebook import lines_of, phrases_of, words_of
from apps.pocket.schema import KINDS as ARGUMENT_KINDS
from apps.pocket.schema import Action

SPLITS: tuple[Split, ...] = ("train", "dev", "test")


def phrases(split: Split) -> set[str]:
    """Every choice of a held-out side's phrases."""
    found = (phrase.expansions() for name in ACTIONS for phrase in phrases_of(split)[name])
    return {text for texts in found for text in texts}


def test_there_are_the_actions_that_a_phone_needs() -> None:
    assert len(ACTIONS) >= 25
    wanted = {"set_alarm", "set_timer", "set_reminder", "send_message", "call", "navigate"}
    wanted |= {"play_music", "switch_setting", "convert_units", "calculate", "create_note"}
    assert wanted | {"draft_reply", "refuse"} <= set(ACTIONS)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("action", ACTIONS.values(), ids=lambda action: action.name)
def test_every_action_parses_and_fits_its_schema(action: Action, split: Split) -> None:
    draw = Draw(random.Random(1), split)
    for _ in range(60):
        example = example_of(action, draw)
        values = json.loads(example.action)
        assert values.pop("action") == action.name == example.name
        assert action.faults(values) == [], example
        assert example.command == " ".join(example.command.split()) == example.command.lower()


def test_every_slot_of_every_phrase_is_known() -> None:
    slots = {
        kind
        for split in SPLITS
        for name in ACTIONS
        for line in lines_of(split)[name]
        for kind in re.findall(r"\{\w+:(\w+)\}", line)
    }
    assert slots == set(KINDS)
    kinds = {kind for action in ACTIONS.values() for kind in action.arguments.values()}
    assert kinds <= set(ARGUMENT_KINDS)


def test_every_section_is_an_action_or_a_frame() -> None:
    frames = {"address", "asking", "after", "message", "task", "note"}
    for split in HELD_OUT:
        assert set(lines_of(split)) == frames | set(ACTIONS)
    assert set(lines_of("train")) == frames | {"lead"} | set(ACTIONS)


def test_no_held_out_phrase_is_on_two_sides() -> None:
    dev, test = phrases("dev"), phrases("test")
    assert len(dev) > 400
    assert len(test) > 300
    assert dev & test == set()
    assert held_out_phrases() == dev | test


def test_training_cannot_frame_a_phrase_of_its_own_into_a_tested_one() -> None:
    """As "can you" and "take a selfie" would make one."""
    book = lines_of("train")
    commands, questions = (
        "|".join(
            regex(phrase.pattern)
            for name in ACTIONS
            for phrase in phrases_of("train")[name]
            if phrase.question == question
        )
        for question in (False, True)
    )
    frames = {
        name: "|".join(map(regex, book[name])) for name in ("address", "asking", "lead", "after")
    }
    before, after = f"(?:(?:{frames['address']}),?)", f"(?:{frames['after']})"
    tested = [text.replace(" ", "") for text in phrases("test")]
    for phrase, frame in ((commands, frames["asking"]), (questions, frames["lead"])):
        begun = re.compile(f"(?:{before}(?:{frame})?|{frame})(?:{phrase}){after}?")
        ended = re.compile(f"(?:{phrase}){after}")
        assert [text for text in tested if begun.fullmatch(text) or ended.fullmatch(text)] == []


def regex(pattern: str) -> str:
    """What matches every choice of a pattern, without spaces, whatever its slots are called."""
    pieces = re.finditer(r"\{\w+:(\w+)\}|([(|)])|([^\s(){}|]+)", pattern)
    return "".join(
        rf"\{{\w+:{kind}\}}" if kind else mark.replace("(", "(?:") or re.escape(text)
        for kind, mark, text in (piece.groups("") for piece in pieces)
    )


@pytest.mark.parametrize("frame", ["address", "asking", "after", "message", "task", "note"])
def test_no_frame_is_on_two_sides(frame: str) -> None:
    chosen = {
        split: {text for line in lines_of(split)[frame] for text in expand(line)}
        for split in SPLITS
    }
    for one, other in itertools.combinations(SPLITS, 2):
        assert chosen[one] & chosen[other] == set()


def test_training_never_says_a_held_out_phrase(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the held-out phrases put among its own it draws none of them."""
    filled: set[str] = set()
    fill = Phrase.fill

    def watched(phrase: Phrase, chosen: str, draw: Draw, kinds: object) -> object:
        filled.add(chosen)
        return fill(phrase, chosen, draw, KINDS)

    monkeypatch.setattr(Phrase, "fill", watched)
    book = phrases_of("train") | {
        name: phrases_of("train")[name][:9] + phrases_of("test")[name] + phrases_of("dev")[name]
        for name in ACTIONS
    }
    monkeypatch.setattr(dataset, "phrases_of", lambda split: book)
    for _ in itertools.islice(examples(1, "train"), 6000):
        pass
    assert len(filled) > 1000
    assert filled & (phrases("dev") | phrases("test")) == set()


@pytest.mark.parametrize("kind", ["person", "first", "place", "city", "artist", "song", "app"])
def test_no_held_out_name_is_in_training(kind: str) -> None:
    def drawn(split: Split) -> set[object]:
        draw = Draw(random.Random(5), split)
        return {KINDS[kind](draw).value for _ in range(1500)}

    sides = {split: drawn(split) for split in SPLITS}
    assert all(len(side) > 100 for side in sides.values())
    for one, other in itertools.combinations(SPLITS, 2):
        assert {name for name in sides[one] & sides[other] if not str(name).isdigit()} == set()


def test_a_name_is_on_one_side_for_good() -> None:
    first_names = set(words_of("first"))
    sides = {split: {n for n in first_names if names.side_of(n) == split} for split in SPLITS}
    assert all(len(side) > 0.1 * len(first_names) for side in sides.values())
    other_words = {word for section in ("noun", "adjective", "verb") for word in words_of(section)}
    other_words |= set(
        " ".join(line for lines in lines_of("train").values() for line in lines).split()
    )
    commands = " ".join(e.command for e in itertools.islice(examples(3, "train"), 3000)).split()
    other_words |= {"april", "june", "max"}  # months, and the most of a setting
    held_out = sides["dev"] | sides["test"]
    assert held_out & set(commands) - other_words == set()


def test_the_seed_fixes_the_examples() -> None:
    def first(seed: int) -> list[str]:
        return [e.command for e in itertools.islice(examples(seed, "train"), 20)]

    assert first(1) == first(1)
    assert first(1) != first(2)


@pytest.mark.parametrize("split", HELD_OUT)
def test_a_held_out_set_has_every_action_and_no_command_twice(split: Split) -> None:
    chosen = held_out_set(200, split)
    assert len({example.command for example in chosen}) == 200
    assert {example.name for example in chosen} == set(ACTIONS)
    assert chosen[:50] == held_out_set(50, split)


def test_faults_names_what_is_wrong() -> None:
    alarm = ACTIONS["set_alarm"]
    assert alarm.faults({"time": "06:30", "repeat": "weekdays"}) == []
    assert alarm.faults({"time": "6:30"}) == ["time: '6:30' is no time"]
    assert alarm.faults({"day": "monday"}) == ["time: missing"]
    assert alarm.faults({"time": "06:30", "loud": 1}) == ["loud: no such argument"]
    assert ACTIONS["set_temperature"].faults({"degrees": "20"}) == ["degrees: '20' is no number"]
