"""Names of people, places and music: some real, most made of syllables. One in five is for tests.

Which side a name is on depends on the name alone, so no name is on both.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

from apps.pocket.grammar import Draw, Slot, words

FIRST_NAMES = words("""
anna ben carla david emma frank grace hugo ines jack kate liam maria noah olivia paul quinn rosa sam
tina umar vera will xenia yusuf zoe adam bella chloe diego elena felix gina henry isla james karim
laura marco nina oscar petra rahul sofia theo ursula victor wendy yara zane amelia bruno clara dylan
eva fatima george hannah ivan julia kofi leo mila nadia otto priya rita simon tara uma vikram walter
yuki aisha boris cora dario esme finn greta hassan iris jonas kira lars maya niko olga pablo ravi
sara tom vanessa wei ali beth colin dora erik flora gavin helen igor jane ken lena max nora oliver
peter ruth stella tim ulrich violet arthur bianca cedric daisy edgar freya gabriel heidi isaac
jasmine kevin lucy martin naomi owen paula roger silvia thomas valerie mei omar anil deepa chen
ming kenji aya sven astrid bjorn ingrid matteo giulia luca alessia pierre camille louis
manon hans klaus sabine dieter joao ana rafael beatriz pedro lucia carlos elif mehmet ayse kwame
amara chidi zuri tariq leila
""")

RELATIONS = (
    "mum",
    "dad",
    "mom",
    "grandma",
    "grandpa",
    "my boss",
    "my wife",
    "my husband",
    "my sister",
    "my brother",
)

_ONSETS = words("b c d f g h j k l m n p r s t v w y z br ch cl dr fl gr kr pl sh sl st th tr")
_VOWELS = words("a e i o u a e i o ai ea ee oa ou")
_CODAS = ["", "", "", "n", "l", "r", "s", "m", "nd", "ck", "th", "sh", "x", "t"]

_SURNAMES = words("""
smith jones taylor brown wilson evans thomas johnson roberts walker wright thompson white hughes
edwards green hall wood harris martin lewis clarke jackson turner hill moore garcia lopez silva
costa rossi bianchi meyer weber fischer novak kowalski petrov tanaka sato suzuki kim park nguyen
singh patel khan mensah okafor
""")

_CITIES = words("""
london paris berlin madrid rome vienna prague lisbon oslo dublin athens tokyo delhi cairo sydney
boston chicago denver seattle toronto nairobi lagos lima bogota seoul bangkok dubai istanbul moscow
warsaw budapest zurich geneva munich hamburg milan naples venice kyoto osaka shanghai singapore
""")

_KNOWN_PLACES = (
    "the airport",
    "work",
    "school",
    "the train station",
    "the beach",
    "the office",
    "the hospital",
    "the park",
    "the supermarket",
    "the city center",
    "the museum",
    "the library",
    "the university",
)

_PLACE_KINDS = words(
    "street road avenue lane square park station hotel cafe museum bridge library theatre market "
    "stadium airport hospital school tower beach"
)

_TITLE_WORDS = words("""
silver golden blue red black white green electric velvet broken silent wild lonely hidden frozen
burning little midnight summer winter crystal paper neon distant dancing sleeping flying endless
""")

_TITLE_NOUNS = words("""
river fire moon sun star rain storm heart dream road city mountain ocean shadow mirror garden bird
wolf fox tiger horse train ship clock light sky wind snow stone flower thunder island forest desert
""")


def is_held_out(name: str) -> bool:
    """Whether a name is for tests alone."""
    return zlib.crc32(name.encode()) % 5 == 0


def draw_name(draw: Draw, make: Callable[[Draw], str]) -> str:
    """A name of this side of the split."""
    while True:
        name = make(draw)
        if is_held_out(name) == (draw.split == "test"):
            return name


def made_word(draw: Draw) -> str:
    """A word that no language need have: two or three syllables."""
    count = 3 if draw.chance(0.3) else 2
    return "".join(draw.one(_ONSETS) + draw.one(_VOWELS) for _ in range(count)) + draw.one(_CODAS)


def first_name(draw: Draw) -> str:
    return draw_name(draw, lambda d: d.one(FIRST_NAMES) if d.chance(0.5) else made_word(d))


def first(draw: Draw) -> Slot:
    """A person called by one name, or by what they are to one."""
    related = draw.split == "train" and draw.chance(0.12)
    name = draw.one(RELATIONS) if related else first_name(draw)
    return Slot(name, name)


def person(draw: Draw) -> Slot:
    """A person, at times with a surname, at times a number."""
    if draw.chance(0.04):
        number = str(draw.rng.randint(100, 99_999_999))
        return Slot(number, number)
    if draw.chance(0.8):
        return first(draw)
    surname = draw_name(draw, lambda d: d.one(_SURNAMES) if d.chance(0.5) else made_word(d))
    name = f"{first_name(draw)} {surname}"
    return Slot(name, name)


def place(draw: Draw) -> Slot:
    """A place with a name, or one that everybody knows."""
    if draw.split == "train" and draw.chance(0.12):
        name = draw.one(_KNOWN_PLACES)
        return Slot(name, name)
    name = draw_name(draw, _place)
    return Slot(name, name)


def _place(draw: Draw) -> str:
    if draw.chance(0.3):
        return made_word(draw)
    first = draw.one(_TITLE_WORDS) if draw.chance(0.3) else made_word(draw)
    article = "the " if draw.chance(0.25) else ""
    number = f"{draw.rng.randint(1, 99)} " if not article and draw.chance(0.15) else ""
    return f"{number}{article}{first} {draw.one(_PLACE_KINDS)}"


def city(draw: Draw) -> Slot:
    """A city, for weather and time."""
    name = draw_name(draw, lambda d: d.one(_CITIES) if d.chance(0.4) else made_word(d))
    return Slot(name, name)


def artist(draw: Draw) -> Slot:
    """Who plays the music."""
    name = draw_name(draw, _artist)
    return Slot(name, name)


def _artist(draw: Draw) -> str:
    if draw.chance(0.4):
        return f"the {draw.one(_TITLE_WORDS)} {draw.one(_TITLE_NOUNS)}s"
    if draw.chance(0.5):
        return f"{made_word(draw)} {made_word(draw)}"
    return made_word(draw)


def song(draw: Draw) -> Slot:
    """A title."""
    name = draw_name(draw, _song)
    return Slot(name, name)


def _song(draw: Draw) -> str:
    form = draw.rng.randrange(4)
    if form == 0:
        return f"{draw.one(_TITLE_WORDS)} {draw.one(_TITLE_NOUNS)}"
    if form == 1:
        return f"{draw.one(_TITLE_NOUNS)} of {made_word(draw)}"
    if form == 2:
        return f"{made_word(draw)} {draw.one(_TITLE_NOUNS)}"
    return f"my {draw.one(_TITLE_WORDS)} {draw.one(_TITLE_NOUNS)}"


def app(draw: Draw) -> Slot:
    """An application with a name of its own."""
    name = draw_name(draw, made_word)
    return Slot(name, name)
