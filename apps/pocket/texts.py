"""What people put in messages, notes, reminders and lists: sentences of a small grammar.

Actions repeat it word for word. In training two in five are runs of unrelated words, so that a
model learns to copy what is there and not to guess what is likely. Held-out texts have sentence
forms of their own.
"""

from __future__ import annotations

from apps.pocket.grammar import Draw, Slot, choose, tidy
from apps.pocket.names import first_name, made_word
from apps.pocket.phrasebook import lines_of, words_of


def fill(draw: Draw, forms: tuple[str, ...]) -> str:
    """One of the forms with its words drawn."""
    text = choose(draw.one(forms), draw)
    while (start := text.find("{")) >= 0:
        end = text.index("}", start)
        text = text[:start] + _word(draw, text[start + 1 : end]) + text[end + 1 :]
    return tidy(text)


def _word(draw: Draw, kind: str) -> str:
    if kind == "name":
        return first_name(draw)
    if kind == "number":
        return str(draw.rng.randint(2, 9999))
    if kind == "noun" and draw.chance(0.06):
        return made_word(draw)
    return draw.one(words_of(kind))


def _scramble(draw: Draw) -> str:
    """Two to nine unrelated words."""
    kinds = ("noun", "adjective", "verb", "past", "name", "filler", "filler")
    return " ".join(
        made_word(draw) if draw.chance(0.2) else _word(draw, draw.one(kinds))
        for _ in range(draw.rng.randint(2, 9))
    )


def _free(draw: Draw, section: str) -> Slot:
    if draw.split == "train" and draw.chance(0.4):
        text = _scramble(draw)
    else:
        text = fill(draw, lines_of(draw.split)[section])
    return Slot(text, text, free=True)


def message(draw: Draw) -> Slot:
    """The text of a message."""
    return _free(draw, "message")


def task(draw: Draw) -> Slot:
    """Something to do, as it follows "to"."""
    return _free(draw, "task")


def note(draw: Draw) -> Slot:
    """Something to write down."""
    return _free(draw, "note")


def item(draw: Draw) -> Slot:
    """An entry of a list, or what one looks for."""
    name = made_word(draw) if draw.chance(0.15) else draw.one(words_of("noun"))
    if draw.chance(0.3):
        name = f"{draw.one(words_of('adjective'))} {name}"
    if draw.split == "train" and draw.chance(0.1):
        name = f"{name} {draw.one(words_of('noun'))}"
    return Slot(name, name)
