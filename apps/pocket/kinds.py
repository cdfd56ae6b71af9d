"""Every kind of slot, by the name that phrases give it."""

from __future__ import annotations

from collections.abc import Callable

from apps.pocket import moments, names, sums, texts
from apps.pocket.grammar import Draw, Slot
from apps.pocket.phrasebook import words_of

_SETTINGS = {
    "wifi": ("wifi", "wi-fi", "the wireless"),
    "bluetooth": ("bluetooth",),
    "airplane_mode": ("airplane mode", "flight mode"),
    "do_not_disturb": ("do not disturb", "do not disturb mode"),
    "dark_mode": ("dark mode", "night mode"),
    "location": ("location", "gps"),
    "hotspot": ("hotspot", "personal hotspot"),
    "mobile_data": ("mobile data", "cellular data"),
    "flashlight": ("flashlight", "torch"),
    "battery_saver": ("battery saver", "power saving mode"),
    "auto_rotate": ("auto rotate", "screen rotation"),
    "silent_mode": ("silent mode", "vibration mode"),
    "nfc": ("nfc",),
}


def _setting(draw: Draw) -> Slot:
    name = draw.one(list(_SETTINGS))
    return Slot(draw.one(_SETTINGS[name]), name)


def _one_of(section: str) -> Callable[[Draw], Slot]:
    def draw_word(draw: Draw) -> Slot:
        word = draw.one(words_of(section))
        return Slot(word, word)

    return draw_word


def _list(draw: Draw) -> Slot:
    name = names.made_word(draw) if draw.chance(0.15) else draw.one(words_of("list"))
    return Slot(name, name)


KINDS: dict[str, Callable[[Draw], Slot]] = {
    "app": names.app,
    "artist": names.artist,
    "city": names.city,
    "day": moments.day,
    "degrees": moments.degrees,
    "duration": moments.duration,
    "first": names.first,
    "genre": _one_of("genre"),
    "item": texts.item,
    "list": _list,
    "message": texts.message,
    "note": texts.note,
    "percent": moments.percent,
    "person": names.person,
    "place": names.place,
    "poi": _one_of("poi"),
    "repeat": moments.repeat,
    "room": _one_of("room"),
    "setting": _setting,
    "song": names.song,
    "sum": sums.arithmetic,
    "task": texts.task,
    "time": moments.time,
    "units_in": sums.units_in,
    "units_make": sums.units_make,
    "units_of": sums.units_of,
    "weekday": moments.weekday,
}
