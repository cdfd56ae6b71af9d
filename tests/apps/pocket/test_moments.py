"""How times, days and numbers are said, checked against what they mean."""

from __future__ import annotations

import random
from datetime import date

import pytest

from apps.pocket import moments, sums
from apps.pocket.grammar import Draw

DRAW = Draw(random.Random(0), "train")


def said(kind: object, count: int = 3000) -> dict[str, object]:
    assert callable(kind)
    return {slot.said: slot.value for slot in (kind(DRAW) for _ in range(count))}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("half past six", "06:30"),
        ("quarter to one", "12:45"),
        ("ten to 8 pm", "19:50"),
        ("noon", "12:00"),
        ("twelve am", "00:00"),
        ("12 pm", "12:00"),
        ("20:15", "20:15"),
        ("half past twelve in the evening", "00:30"),
        ("half past twelve in the afternoon", "12:30"),
        ("quarter to one at night", "00:45"),
        ("ten to 4 in the afternoon", "15:50"),
        ("five in the morning", "05:00"),
    ],
)
def test_times(text: str, value: str) -> None:
    assert said(moments.time, 60_000)[text] == value


def test_durations_and_repeats() -> None:
    durations = said(moments.duration)
    assert durations["an hour and a half"] == "1h30m"
    assert durations["45 seconds"] == "45s"
    assert said(moments.repeat)["on weekdays"] == "weekdays"
    assert said(moments.repeat)["on mondays"] == "monday"


def test_days_are_dates_that_exist() -> None:
    days = said(moments.day)
    assert days["on friday"] == "friday"
    numbered = [str(value) for value in days.values() if "-" in str(value)]
    assert len(numbered) > 200
    for value in numbered:
        date.fromisoformat(f"2023-{value}")


def test_words_of_numbers() -> None:
    assert [moments.words_of(n) for n in (0, 13, 20, 47, 100)] == [
        "zero",
        "thirteen",
        "twenty",
        "forty seven",
        "one hundred",
    ]


def test_sums_can_be_computed() -> None:
    for text, value in said(sums.arithmetic, 500).items():
        expression = str(value).replace("sqrt", "abs")
        assert eval(expression, {"__builtins__": {"abs": abs}}) is not None, text


def test_conversions_are_between_units_of_one_kind() -> None:
    for text, value in said(sums.units_in, 500).items():
        amount, source, goal = str(value).split()
        assert float(amount) >= 0
        assert source != goal, text
