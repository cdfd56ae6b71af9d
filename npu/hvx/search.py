"""Looks for shorter schedules of the lookup loops: knobs (`knobs.Knobs`) changed a few at a time.

    python -m npu.hvx.search w2g64a --trials 20000 --seed 1

Starts from the knobs in `knobs.KNOBS`; prints what is better as it is found, fewer packets first,
then fewer cycles, in the form in which `knobs.KNOBS` has it. All knobs give the same results, so
the best may be put there; `python -m npu.hvx.packets` counts what comes of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge.formats import Format
from npu.hvx import inner
from npu.hvx.knobs import KNOBS, Knobs
from npu.hvx.schedule import DoesNotFit

# What a knob may be.
CHOICES: Mapping[str, Sequence[Any]] = {
    "ahead": range(1, 5),
    "multiplied_ahead": range(3),
    "resident": range(4, 17),
    "late": range(5),
    "together": (False, True),
    "window": range(8, 60),
    "patience": range(20),
    "units": ("MNPS", "PSMN", "PMNS", "SPMN", "MPNS"),
    "latency": (1, 1, 1, 2),
    "limit": range(14, 28),
    "scales_together": (False, True),
    "zeros_after": range(4),
    "doubled": range(5),
    "shuffle": range(1000),
    "interleaved": range(256),
}

# Shifts of a turn, at most, and how often some are turned over beside other knobs.
_SHIFTS, _TURNED = 64, 0.5

# Knobs that are kept to be changed further, and of how many the best is taken.
_KEPT, _COMPARED = 12, 4


@dataclass(frozen=True, order=True)
class Found:
    """A schedule's packets, its cycles as `Loop.cycles` models them, and what made it."""

    packets: int
    cycles: int
    knobs: Knobs = field(compare=False)


def found(form: Format, knobs: Knobs, most: int = 10_000) -> Found | None:
    """What knobs make of a format's loop; None where registers or `most` packets do not suffice."""
    try:
        made = inner.scheduled(form, knobs, most)
    except DoesNotFit:
        return None
    return Found(made.length, made.cycles(), knobs)


def search(form: Format, trials: int, seed: int) -> Iterator[Found]:
    """Yield schedules, each better than those before, from the best of `knobs.KNOBS` on."""
    chance = random.Random(seed)  # noqa: S311
    kept = [made for knobs in KNOBS.values() if (made := found(form, knobs)) is not None]
    while not kept:
        kept = [made for made in [found(form, _drawn(chance))] if made is not None]
    best = min(kept)
    yield best
    for _ in range(trials):
        start = min(chance.sample(kept, min(_COMPARED, len(kept))))
        made = found(form, _changed(start.knobs, chance), start.packets)
        if made is None:
            continue
        kept = sorted([*kept, made])[:_KEPT]
        if made < best:
            best = made
            yield best


def _changed(knobs: Knobs, chance: random.Random) -> Knobs:
    names = chance.sample(list(CHOICES), chance.choice((1, 1, 2, 3)))
    changes = {name: chance.choice(CHOICES[name]) for name in names}
    if chance.random() < _TURNED:
        turned = sum({1 << chance.randrange(_SHIFTS) for _ in range(chance.randint(1, 3))})
        changes["multiplied"] = knobs.multiplied ^ turned
    return dataclasses.replace(knobs, **changes)


def _drawn(chance: random.Random) -> Knobs:
    chosen = {name: chance.choice(choices) for name, choices in CHOICES.items()}
    return Knobs(**chosen | {"multiplied": chance.getrandbits(_SHIFTS)})


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m npu.hvx.search", description=__doc__)
    parser.add_argument("formats", nargs="+", help="such as w2g64a")
    parser.add_argument("--trials", type=int, default=5000, help="some 50 a second")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    for form in map(Format.parse, options.formats):
        for made in search(form, options.trials, options.seed):
            first, *others = vars(made.knobs).values()
            knobs = ", ".join([hex(first), *map(repr, others)])
            print(
                f"{form}: {made.packets} packets, {made.cycles} cycles  Knobs({knobs})", flush=True
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
