"""How times, days, dates, durations and numbers are said, and how actions write them.

A time is "HH:MM"; without morning or evening it is taken as said, so "half past six" is 06:30. A
duration is such as "1h30m" or "45s", a date "MM-DD", a day its English name in small letters.
"""

from __future__ import annotations

from apps.pocket.grammar import Draw, Slot, words

_UNITS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")

WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS = words(
    "january february march april may june july august september october november december"
)
_ORDINALS = words(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth "
    "fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
)

_AM = ("am", "am", "a.m.")
_PM = ("pm", "pm", "p.m.")
# What people call the half of the day, and the hours that have the name, on a clock of 24.
_PARTS = {
    "in the morning": range(1, 12),
    "in the afternoon": range(12, 19),
    "in the evening": (*range(16, 24), 0),
    "at night": (*range(20, 24), *range(4)),
}


def words_of(number: int) -> str:
    """A number from 0 to 100 in words."""
    if number < 20:
        return _UNITS[number]
    if number == 100:
        return "one hundred"
    tens, units = divmod(number, 10)
    return _TENS[tens - 2] + (f" {_UNITS[units]}" if units else "")


def spoken(draw: Draw, number: int) -> str:
    """A number in digits, or in words where those are short."""
    return words_of(number) if number <= 100 and draw.chance(0.5) else str(number)


def percent(draw: Draw) -> Slot:
    """0 to 100; most people say tens."""
    value = 10 * draw.rng.randint(0, 10) if draw.chance(0.5) else draw.rng.randint(0, 100)
    return Slot(spoken(draw, value), value)


def degrees(draw: Draw) -> Slot:
    value = draw.rng.randint(14, 27)
    return Slot(spoken(draw, value), value)


def time(draw: Draw) -> Slot:
    """A time of the day."""
    form = draw.rng.random()
    if form < 0.04:
        return draw.one((Slot("noon", "12:00"), Slot("midnight", "00:00"), Slot("midday", "12:00")))
    if form < 0.12:  # on a 24-hour clock
        hour, minute = draw.rng.randint(13, 23), draw.rng.randrange(0, 60, 5)
        return Slot(f"{hour}:{minute:02}", f"{hour:02}:{minute:02}")
    hour = draw.rng.randint(1, 12)
    if form < 0.4:
        said, minute = _bare_hour(draw, hour)
    elif form < 0.75:
        said, minute, hour = _relative(draw, hour)
    else:
        said, minute = _hour_and_minute(draw, hour)
    return _with_half(draw, said, hour, minute)


def _bare_hour(draw: Draw, hour: int) -> tuple[str, int]:
    return spoken(draw, hour) + (" o'clock" if draw.chance(0.25) else ""), 0


def _relative(draw: Draw, hour: int) -> tuple[str, int, int]:
    """Said from the nearest hour; the hour meant may be the one before."""
    minutes = draw.one((30, 30, 15, 15, 5, 10, 20, 25))
    name = {30: "half", 15: draw.one(("quarter", "a quarter"))}.get(minutes, spoken(draw, minutes))
    if minutes == 30 or draw.chance(0.5):
        return f"{name} past {spoken(draw, hour)}", minutes, hour
    return f"{name} to {spoken(draw, hour)}", 60 - minutes, 12 if hour == 1 else hour - 1


def _hour_and_minute(draw: Draw, hour: int) -> tuple[str, int]:
    minute = draw.rng.randrange(5, 60, 5) if draw.chance(0.6) else draw.rng.randint(1, 59)
    if draw.chance(0.6):
        return f"{hour}:{minute:02}", minute
    said = f"oh {words_of(minute)}" if minute < 10 else words_of(minute)
    return f"{words_of(hour)} {said}", minute


def _with_half(draw: Draw, said: str, hour: int, minute: int) -> Slot:
    """Add the half of the day, or none."""
    form = draw.rng.random()
    if form < 0.5:
        return Slot(said, f"{hour:02}:{minute:02}")
    hour = hour % 12 + 12 * draw.chance(0.5)
    names = [*(_AM if hour < 12 else _PM), *(part for part in _PARTS if hour in _PARTS[part])]
    return Slot(f"{said} {draw.one(names)}", f"{hour:02}:{minute:02}")


def duration(draw: Draw) -> Slot:
    """A length of time."""
    form = draw.rng.random()
    if form < 0.16:
        return draw.one(
            (
                Slot("an hour", "1h"),
                Slot("half an hour", "30m"),
                Slot("an hour and a half", "1h30m"),
                Slot("a quarter of an hour", "15m"),
                Slot("a minute", "1m"),
                Slot("one minute", "1m"),
                Slot("one hour", "1h"),
            )
        )
    if form < 0.6:
        minutes = draw.rng.randint(2, 59)
        return Slot(f"{spoken(draw, minutes)} minutes", f"{minutes}m")
    if form < 0.75:
        seconds = draw.rng.randint(5, 90)
        return Slot(f"{spoken(draw, seconds)} seconds", f"{seconds}s")
    hours = draw.rng.randint(2, 12)
    if form < 0.87:
        return Slot(f"{spoken(draw, hours)} hours", f"{hours}h")
    minutes = draw.rng.randint(2, 59)
    return Slot(
        f"{spoken(draw, hours)} hours and {spoken(draw, minutes)} minutes", f"{hours}h{minutes}m"
    )


def weekday(draw: Draw) -> Slot:
    day = draw.one(WEEKDAYS)
    return Slot(day, day)


def day(draw: Draw) -> Slot:
    """A day, as it follows a verb: "tomorrow", "on friday", "on the third of may"."""
    form = draw.rng.random()
    if form < 0.35:
        word = draw.one(("today", "tomorrow"))
        return Slot(word, word)
    if form < 0.7:
        name = draw.one(WEEKDAYS)
        return Slot(draw.one(("on ", "on ", "this ")) + name, name)
    month, number = draw.rng.randint(1, 12), draw.rng.randint(1, 30)
    number = min(number, 28) if month == 2 else number
    ordinal = ordinal_of(draw, number)
    name = _MONTHS[month - 1]
    said = f"the {ordinal} of {name}" if draw.chance(0.5) else f"{name} {ordinal}"
    return Slot(f"on {said}", f"{month:02}-{number:02}")


def ordinal_of(draw: Draw, number: int) -> str:
    """3rd or third."""
    if draw.chance(0.5):
        ending = "th" if 10 < number < 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
        return f"{number}{ending}"
    if number <= 20:
        return _ORDINALS[number - 1]
    tens, units = divmod(number, 10)
    return f"{_TENS[tens - 2]} {_ORDINALS[units - 1]}" if units else "thirtieth"


def repeat(draw: Draw) -> Slot:
    """How often an alarm rings."""
    form = draw.rng.random()
    if form < 0.35:
        return Slot(draw.one(("on weekdays", "every weekday", "on work days")), "weekdays")
    if form < 0.5:
        return Slot(draw.one(("on weekends", "every weekend", "at weekends")), "weekends")
    if form < 0.7:
        return Slot(draw.one(("every day", "each day", "daily")), "daily")
    name = draw.one(WEEKDAYS)
    return Slot(draw.one((f"every {name}", f"on {name}s", f"each {name}")), name)
