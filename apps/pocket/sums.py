"""Arithmetic and conversions of units as they are said, and what the device shall compute."""

from __future__ import annotations

from apps.pocket.grammar import Draw, Slot, Value
from apps.pocket.moments import spoken

_OPERATORS = {
    "+": ("plus", "and", "+", "plus"),
    "-": ("minus", "take away", "-", "minus"),
    "*": ("times", "multiplied by", "x", "*"),
    "/": ("divided by", "over", "/", "divided by"),
}

# Symbol: how one and several are called.
_UNITS = {
    "length": {
        "km": ("kilometer", "kilometers"),
        "mi": ("mile", "miles"),
        "m": ("meter", "meters"),
        "ft": ("foot", "feet"),
        "cm": ("centimeter", "centimeters"),
        "in": ("inch", "inches"),
        "yd": ("yard", "yards"),
    },
    "mass": {
        "kg": ("kilogram", "kilograms"),
        "lb": ("pound", "pounds"),
        "g": ("gram", "grams"),
        "oz": ("ounce", "ounces"),
    },
    "volume": {
        "l": ("liter", "liters"),
        "gal": ("gallon", "gallons"),
        "ml": ("milliliter", "milliliters"),
        "cup": ("cup", "cups"),
    },
    "temperature": {
        "c": ("degree celsius", "degrees celsius"),
        "f": ("degree fahrenheit", "degrees fahrenheit"),
    },
}


def arithmetic(draw: Draw) -> Slot:
    """A sum, product, power, root or share."""
    form = draw.rng.random()
    a, b = _number(draw), _number(draw)
    if form < 0.62:
        sign = draw.one(list(_OPERATORS))
        return Slot(
            f"{spoken(draw, a)} {draw.one(_OPERATORS[sign])} {spoken(draw, b)}", f"{a}{sign}{b}"
        )
    if form < 0.72:
        first, second = draw.one(list(_OPERATORS)), draw.one(("+", "-"))
        c = _number(draw)
        said = f"{a} {_OPERATORS[first][0]} {b} {_OPERATORS[second][0]} {c}"
        return Slot(said, f"{a}{first}{b}{second}{c}")
    if form < 0.82:
        share = draw.rng.randint(1, 100)
        return Slot(f"{spoken(draw, share)} percent of {spoken(draw, b)}", f"{share}/100*{b}")
    if form < 0.89:
        return Slot(f"the square root of {spoken(draw, a)}", f"sqrt({a})")
    if form < 0.94:
        name, divisor = draw.one((("half", 2), ("a third", 3), ("a quarter", 4)))
        return Slot(f"{name} of {spoken(draw, a)}", f"{a}/{divisor}")
    power = draw.rng.randint(2, 9)
    if draw.chance(0.4):
        return Slot(f"{spoken(draw, a)} squared", f"{a}**2")
    return Slot(f"{spoken(draw, a)} to the power of {spoken(draw, power)}", f"{a}**{power}")


def _number(draw: Draw) -> int:
    digits = draw.one((1, 1, 2, 2, 2, 3, 3, 4))
    return draw.rng.randint(1, 10**digits - 1)


def _pair(draw: Draw) -> tuple[str, tuple[str, str], str, tuple[str, str]]:
    units = _UNITS[draw.one(list(_UNITS))]
    first, second = draw.rng.sample(list(units), 2)
    return first, units[first], second, units[second]


def _amount(draw: Draw) -> tuple[str, Value]:
    if draw.chance(0.15):
        value = draw.rng.randint(0, 99) + draw.rng.randint(1, 9) / 10
        return str(value), value
    number = _number(draw)
    return spoken(draw, number), number


def _joined(draw: Draw, form: str) -> Slot:
    source, source_names, goal, goal_names = _pair(draw)
    said, value = _amount(draw)
    names = {"amount": said, "source": source_names[value != 1], "goal": goal_names[1]}
    return Slot(form.format_map(names), f"{value} {source} {goal}")


def units_in(draw: Draw) -> Slot:
    """5 miles in kilometers."""
    return _joined(draw, draw.one(("{amount} {source} in {goal}", "{amount} {source} to {goal}")))


def units_of(draw: Draw) -> Slot:
    """Kilometers are in 5 miles."""
    return _joined(
        draw, draw.one(("{goal} are in {amount} {source}", "{goal} in {amount} {source}"))
    )


def units_make(draw: Draw) -> Slot:
    """Kilometers do 5 miles make."""
    form = (
        "{goal} do {amount} {source} make",
        "{goal} is {amount} {source}",
        "{goal} are {amount} {source}",
    )
    return _joined(draw, draw.one(form))
