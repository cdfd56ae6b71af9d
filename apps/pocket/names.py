"""Names of people, places and music: some real, most made up. Two in five are held out.

Which side a name is on depends on the name alone, so no name is on two.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

from apps.pocket.grammar import Draw, Slot, Split, words
from apps.pocket.phrasebook import words_of

_ONSETS = words("b c d f g h j k l m n p r s t v w y z br ch cl dr fl gr kr pl sh sl st th tr")
_VOWELS = words("a e i o u a e i o ai ea ee oa ou")
_CODAS = ["", "", "", "n", "l", "r", "s", "m", "nd", "ck", "th", "sh", "x", "t"]

_LETTERS = [*"aaabcddeeeefghiiijkllmmnnoopqrrssttuuvwxyz"]


def side_of(name: str) -> Split:
    """The only side that a name is drawn on."""
    sides: dict[int, Split] = {0: "dev", 1: "test"}
    return sides.get(zlib.crc32(name.encode()) % 5, "train")


def draw_name(draw: Draw, make: Callable[[Draw], str]) -> str:
    """A name of this side of the split."""
    while True:
        name = make(draw)
        if side_of(name) == draw.split:
            return name


def made_word(draw: Draw) -> str:
    """A word that no language need have: two or three syllables, or stranger in training.

    The stranger it may be, the less a model can do but copy it piece by piece.
    """
    form = draw.rng.random()
    if draw.split != "train" or form < 0.5:
        count = 3 if draw.chance(0.3) else 2
        syllables = (draw.one(_ONSETS) + draw.one(_VOWELS) for _ in range(count))
        return "".join(syllables) + draw.one(_CODAS)
    if form < 0.8:
        return _spliced(draw)
    return "".join(draw.one(_LETTERS) for _ in range(draw.rng.randint(2, 9)))


def _spliced(draw: Draw) -> str:
    """The beginning of one word and the end of another."""
    first, last = (draw.one(words_of(draw.one(("first", "surname", "city", "noun")))) for _ in "ab")
    return first[: draw.rng.randint(2, 5)] + last[-draw.rng.randint(2, 5) :]


def _named(draw: Draw, section: str, share: float) -> str:
    """A name of a section as often as `share`, or a made one."""
    return draw.one(words_of(section)) if draw.chance(share) else made_word(draw)


def any_words(draw: Draw) -> str:
    """One to four words of any kind, for training: whatever it is, it is a name."""
    sections = ("noun", "adjective", "verb", "first", "surname", "city", "title")
    count = draw.one((1, 2, 2, 3, 4))
    return " ".join(
        draw_name(draw, lambda d: _named(d, d.one(sections), 0.6)) for _ in range(count)
    )


def _drawn(draw: Draw, make: Callable[[Draw], str]) -> Slot:
    """A name; in training one in six is any words."""
    odd = draw.split == "train" and draw.chance(1 / 6)
    name = draw_name(draw, any_words if odd else make)
    return Slot(name, name)


def first_name(draw: Draw) -> str:
    return draw_name(draw, lambda d: _named(d, "first", 0.5))


def first(draw: Draw) -> Slot:
    """A person called by one name, or by what they are to one."""
    related = draw.split == "train" and draw.chance(0.08)
    name = draw.one(words_of("relation")) if related else first_name(draw)
    return Slot(name, name)


def person(draw: Draw) -> Slot:
    """A person, at times with a surname, at times a number."""
    if draw.chance(0.04):
        number = str(draw.rng.randint(100, 99_999_999))
        return Slot(number, number)
    if draw.chance(0.65 if draw.split == "train" else 0.8):
        return first(draw)
    if draw.split == "train" and draw.chance(0.2):
        return _drawn(draw, any_words)
    surname = draw_name(draw, lambda d: _named(d, "surname", 0.5))
    name = f"{first_name(draw)} {surname}"
    return Slot(name, name)


def place(draw: Draw) -> Slot:
    """A place with a name, or one that everybody knows."""
    if draw.split == "train" and draw.chance(0.12):
        name = draw.one(words_of("known place"))
        return Slot(name, name)
    return _drawn(draw, _place)


def _place(draw: Draw) -> str:
    if draw.chance(0.3):
        return made_word(draw)
    first = _named(draw, "title", 0.3)
    article = "the " if draw.chance(0.25) else ""
    number = f"{draw.rng.randint(1, 99)} " if not article and draw.chance(0.15) else ""
    return f"{number}{article}{first} {draw.one(words_of('place'))}"


def city(draw: Draw) -> Slot:
    """A city, for weather and time."""
    return _drawn(draw, lambda d: _named(d, "city", 0.4))


def artist(draw: Draw) -> Slot:
    """Who plays the music."""
    return _drawn(draw, _artist)


def _artist(draw: Draw) -> str:
    if draw.chance(0.4):
        return f"the {draw.one(words_of('title'))} {draw.one(words_of('titlenoun'))}s"
    if draw.chance(0.5):
        return f"{made_word(draw)} {made_word(draw)}"
    return made_word(draw)


def song(draw: Draw) -> Slot:
    """A title."""
    return _drawn(draw, _song)


def _song(draw: Draw) -> str:
    form = draw.rng.randrange(4)
    adjective, noun = draw.one(words_of("title")), draw.one(words_of("titlenoun"))
    if form == 0:
        return f"{adjective} {noun}"
    if form == 1:
        return f"{noun} of {made_word(draw)}"
    if form == 2:
        return f"{made_word(draw)} {noun}"
    return f"my {adjective} {noun}"


def app(draw: Draw) -> Slot:
    """An application with a name of its own."""
    return _drawn(draw, made_word)
