"""Looks for shorter schedules of the lookup loops: knobs (`inner.Knobs`) changed a few at a time.

    python -m npu.hvx.search w2g64a --trials 20000 --seed 1

Starts from the knobs in `inner.KNOBS`, and from some drawn by chance; prints what is shorter as it
is found, in the form in which `inner.KNOBS` has it. All knobs give the same results, so the
shortest may be put there; `python -m npu.hvx.packets` counts what comes of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edge.formats import Format
from npu.hvx import inner
from npu.hvx.inner import Knobs
from npu.hvx.schedule import DoesNotFit

# What a knob may be.
CHOICES: Mapping[str, Sequence[Any]] = {
    "every": range(2, 9),
    "phase": range(8),
    "ahead": range(1, 5),
    "multiplied_ahead": range(3),
    "resident": range(4, 16),
    "late": range(5),
    "together": (False, True),
    "window": range(8, 60),
    "patience": range(20),
    "units": ("MNPS", "PSMN", "PMNS", "SPMN", "MPNS"),
    "latency": (1,),
    "limit": range(14, 28),
    "scales_together": (False, True),
    "zeros_after": range(4),
    "doubled": range(5),
    "shuffle": range(1000),
}

# A climb that has not become shorter in so many trials starts anew.
_STUCK = 600


def length_of(form: Format, knobs: Knobs) -> int | None:
    """Packets of a turn, or None where registers do not suffice."""
    try:
        return inner.scheduled(form, knobs).length
    except DoesNotFit:
        return None


def search(form: Format, start: Knobs, trials: int, seed: int) -> Iterator[tuple[int, Knobs]]:
    """Yield knobs, each with a shorter turn than those before, `start` first."""
    chance = random.Random(seed)  # noqa: S311
    best = length_of(form, start)
    if best is not None:
        yield best, start
    held, knobs, since = best, start, 0
    for _ in range(trials):
        tried = _changed(knobs, chance)
        length = length_of(form, tried)
        since += 1
        if length is not None and (held is None or length <= held):
            since = since if length == held else 0
            held, knobs = length, tried
            if best is None or length < best:
                best = length
                yield length, tried
        if since > _STUCK:
            held, knobs, since = None, _drawn(chance), 0


def _changed(knobs: Knobs, chance: random.Random) -> Knobs:
    names = chance.sample(list(CHOICES), chance.choice((1, 1, 2, 3)))
    return dataclasses.replace(knobs, **{name: chance.choice(CHOICES[name]) for name in names})


def _drawn(chance: random.Random) -> Knobs:
    return Knobs(**{name: chance.choice(choices) for name, choices in CHOICES.items()})


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m npu.hvx.search", description=__doc__)
    parser.add_argument("formats", nargs="+", help="such as w2g64a")
    parser.add_argument("--trials", type=int, default=5000, help="about 50 a second")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    for form in map(Format.parse, options.formats):
        start = inner.KNOBS[inner.shape_of(form)]
        for length, knobs in search(form, start, options.trials, options.seed):
            print(f"{form}: {length} packets  {knobs}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
