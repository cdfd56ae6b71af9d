"""What people put in messages, notes, reminders and lists: sentences of a small grammar.

Actions repeat it word for word. One in six is a run of unrelated words, so that a model learns to
copy what is there and not to guess what is likely. Test texts have sentence forms of their own.
"""

from __future__ import annotations

from apps.pocket.grammar import Draw, Slot, choose, tidy, words
from apps.pocket.names import first_name, made_word

NOUNS = words("""
milk bread eggs butter cheese apples rice coffee tea sugar tomatoes soap batteries flowers cake
keys wallet umbrella jacket ticket passport laptop charger camera bag box letter package parcel
bike car bus train door window garden kitchen bathroom roof fence table chair lamp bed sofa carpet
report invoice rent bill contract slides presentation homework essay book paper project meeting
doctor dentist plumber teacher neighbour landlord team dog cat plants fish baby kids children
dinner lunch breakfast pizza soup salad party concert match film lesson class exam holiday trip
money gift present photo video song shoes shirt trousers socks glasses hat gloves laundry dishes
rubbish bins oven fridge washing machine printer phone screen password meds pills vitamins bandages
paint hammer nails rope ladder tent boat guitar piano drums ball
""")

ADJECTIVES = words("""
ready late early broken clean dirty empty full cold warm hot new old big small great good bad funny
tired busy free happy sad lost cheap expensive heavy light quiet loud wet dry open closed sick fine
""")

VERBS = words("""
buy fix wash clean paint sell find check pack return renew cancel book order print sign send call
pay feed water walk bring fetch move open close charge update read finish start cook bake collect
""")

_PAST = words("ate broke fixed found lost sold bought cleaned painted moved forgot took left saw")

_FILLERS = words("""
a the my your our some and or with under over near from this that very not so then again never
always maybe here there we you they she he it is was are did have
""")

_MESSAGES = (
    "i'm (running|a bit|very|) late",
    "i (will be|am) (home|there|outside) (soon|already|)",
    "the {noun} is {adjective}",
    "the {noun} and the {noun} are {adjective}",
    "don't forget (the|your|my) {noun}",
    "(i love you|i miss you|good luck|well done|happy birthday|congratulations|good night)",
    "can you {verb} (some|the|more|my) {noun}",
    "we need (more|some|new|) {noun}",
    "(dinner|lunch|breakfast|the {noun}) is ready",
    "(see you|i'll see you|meet me) (there|at the {noun}|outside)",
    "i {past} (the|my|your) {noun}",
    "have you seen (my|the|our) {noun}",
    "{name} {past} the {noun}",
    "ask {name} about the {noun}",
    "(thank you|thanks) for the {adjective} {noun}",
    "(are|were) you {adjective}",
    "(where|how) is (the|your|my) {noun}",
    "i'm at the {noun}",
    "i can't {verb} the {noun}",
    "(yes|no|ok) i (can|can't|will|won't) (come|help|wait)",
    "the {adjective} {noun} is {adjective}",
    "call me (back|when you can|later)",
)
_MESSAGES_TEST = (
    "i {past} the {adjective} {noun}",
    "is the {noun} (ready|{adjective})",
    "we {past} (your|some) {noun}",
    "{name} is at the {noun}",
    "i'm {adjective} and {adjective}",
    "please {verb} the {noun} and the {noun}",
    "my {noun} is {adjective}",
    "don't {verb} the {noun}",
    "i need (the|your|more) {noun}",
    "i will {verb} your {noun}",
)
_TASKS = (
    "{verb} the {noun}",
    "{verb} (my|our|some) {noun}",
    "(call|write to|visit|thank|meet) {name}",
    "{verb} the {adjective} {noun}",
    "{verb} {noun} for {name}",
    "(pick up|take out|look for|hand in|put away) (the|my) {noun}",
    "{verb} the {noun} and the {noun}",
    "{verb} {noun}",
    "ask {name} about (the|my|) {noun}",
    "(go for a run|drink water|stretch|breathe|do yoga|take a break|go to bed)",
)
_TASKS_TEST = (
    "{verb} (your|more|a|new) {noun}",
    "{verb} {name} the {noun}",
    "(pick up|look for) {name}",
    "thank {name} for the {noun}",
    "{verb} some {adjective} {noun}",
)
_NOTES = (
    "(the|my) {noun} is (in|under|near|on) the {noun}",
    "the {noun} (code|number|password) is {number}",
    "{name} likes {adjective} {noun}",
    "{name} {past} (the|my) {noun}",
    "(idea|ideas) for the {noun}",
    "{verb} the {noun} (first|again|soon)",
    "(we|they) {past} a {adjective} {noun}",
    "{noun} and {noun}",
    "the {adjective} {noun} costs {number}",
    "{name} lives near the {noun}",
    "{number} {noun}",
)
_NOTES_TEST = (
    "{name} and {name} like {noun}",
    "the {noun} near the {noun} is {adjective}",
    "my {noun} number is {number}",
    "{verb} {name}'s {noun}",
    "they {past} {number} {noun}",
)


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
    pools = {"noun": NOUNS, "adjective": ADJECTIVES, "verb": VERBS, "past": _PAST}
    return draw.one(pools[kind])


def _scramble(draw: Draw) -> str:
    """Two to six unrelated words."""
    pools = (NOUNS, ADJECTIVES, VERBS, _PAST, _FILLERS, _FILLERS)
    chosen = [
        made_word(draw) if draw.chance(0.2) else draw.one(draw.one(pools))
        for _ in range(draw.rng.randint(2, 6))
    ]
    return " ".join(chosen)


def _free(draw: Draw, train: tuple[str, ...], test: tuple[str, ...]) -> Slot:
    if draw.split == "train" and draw.chance(1 / 6):
        text = _scramble(draw)
    else:
        text = fill(draw, train if draw.split == "train" else test)
    return Slot(text, text, free=True)


def message(draw: Draw) -> Slot:
    """The text of a message."""
    return _free(draw, _MESSAGES, _MESSAGES_TEST)


def task(draw: Draw) -> Slot:
    """Something to do, as it follows "to"."""
    return _free(draw, _TASKS, _TASKS_TEST)


def note(draw: Draw) -> Slot:
    """Something to write down."""
    return _free(draw, _NOTES, _NOTES_TEST)


def item(draw: Draw) -> Slot:
    """An entry of a list, or what one looks for."""
    name = made_word(draw) if draw.chance(0.15) else draw.one(NOUNS)
    if draw.chance(0.3):
        name = f"{draw.one(ADJECTIVES)} {name}"
    return Slot(name, name)
