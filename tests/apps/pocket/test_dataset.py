"""The generated commands: valid actions, and a test set that shares nothing with training."""

from __future__ import annotations

import itertools
import json
import random
import re

import pytest

from apps.pocket import names
from apps.pocket.actions import ACTIONS
from apps.pocket.dataset import _ADDRESS, _AFTER, _ASKING, example_of, examples, held_out_set
from apps.pocket.grammar import Draw
from apps.pocket.kinds import KINDS
from apps.pocket.schema import KINDS as ARGUMENT_KINDS
from apps.pocket.schema import Action


def phrases(split: str) -> set[str]:
    return {
        text
        for action in ACTIONS.values()
        for phrase in (action.training if split == "train" else action.testing)
        for text in phrase.expansions()
    }


def test_there_are_the_actions_that_a_phone_needs() -> None:
    assert len(ACTIONS) >= 25
    wanted = {"set_alarm", "set_timer", "set_reminder", "send_message", "call", "navigate"}
    wanted |= {"play_music", "switch_setting", "convert_units", "calculate", "create_note"}
    assert wanted | {"draft_reply", "refuse"} <= set(ACTIONS)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("action", ACTIONS.values(), ids=lambda action: action.name)
def test_every_action_parses_and_fits_its_schema(action: Action, split: str) -> None:
    draw = Draw(random.Random(1), split)  # type: ignore[arg-type]
    for _ in range(60):
        example = example_of(action, draw)
        values = json.loads(example.action)
        assert values.pop("action") == action.name == example.name
        assert action.faults(values) == [], example
        assert example.command == " ".join(example.command.split()) == example.command.lower()


def test_every_slot_of_every_phrase_is_known() -> None:
    slots = {
        kind
        for text in phrases("train") | phrases("test")
        for kind in re.findall(r":(\w+)\}", text)
    }
    assert slots == set(KINDS)
    kinds = {kind for action in ACTIONS.values() for kind in action.arguments.values()}
    assert kinds <= set(ARGUMENT_KINDS)


def test_no_held_out_phrase_is_in_training() -> None:
    assert len(phrases("train")) > 8000
    assert len(phrases("test")) > 400
    assert phrases("train") & phrases("test") == set()
    for wrappers in (_ADDRESS, _ASKING, _AFTER):
        assert set(wrappers["train"]) & set(wrappers["test"]) == set()


@pytest.mark.parametrize("kind", ["person", "first", "place", "city", "artist", "song", "app"])
def test_no_held_out_name_is_in_training(kind: str) -> None:
    def drawn(split: str) -> set[object]:
        draw = Draw(random.Random(5), split)  # type: ignore[arg-type]
        return {KINDS[kind](draw).value for _ in range(1500)}

    train, test = drawn("train"), drawn("test")
    assert len(train) > 100
    assert len(test) > 30
    assert {name for name in train & test if not str(name).isdigit()} == set()


def test_a_name_is_on_one_side_for_good() -> None:
    held_out = [name for name in names.FIRST_NAMES if names.is_held_out(name)]
    assert 0.1 < len(held_out) / len(names.FIRST_NAMES) < 0.3
    commands = " ".join(e.command for e in itertools.islice(examples(3, "train"), 3000)).split()
    assert set(held_out) & set(commands) - {"will", "grace", "rosa"} == set()


def test_the_seed_fixes_the_examples() -> None:
    def first(seed: int) -> list[str]:
        return [e.command for e in itertools.islice(examples(seed, "train"), 20)]

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_the_held_out_set_has_every_action_and_no_command_twice() -> None:
    chosen = held_out_set(200)
    assert len({example.command for example in chosen}) == 200
    assert {example.name for example in chosen} == set(ACTIONS)
    assert chosen[:50] == held_out_set(50)


def test_faults_names_what_is_wrong() -> None:
    alarm = ACTIONS["set_alarm"]
    assert alarm.faults({"time": "06:30", "repeat": "weekdays"}) == []
    assert alarm.faults({"time": "6:30"}) == ["time: '6:30' is no time"]
    assert alarm.faults({"day": "monday"}) == ["time: missing"]
    assert alarm.faults({"time": "06:30", "loud": 1}) == ["loud: no such argument"]
    assert ACTIONS["set_temperature"].faults({"degrees": "20"}) == ["degrees: '20' is no number"]
