"""The search of schedules: better and better ones, each of which holds what it says."""

from __future__ import annotations

from itertools import pairwise

import pytest

from edge.formats import Format
from npu.hvx import inner, search

FORMATS = [
    f"w{bits}{group}{zeros}"
    for bits in (1, 2, 3, 4)
    for group in ("g32", "g64", "g128", "gc")
    for zeros in ("", "a")
]
FORMATS = [text for text in FORMATS if inner.covers(Format.parse(text))]


@pytest.mark.parametrize("text", FORMATS)
def test_every_format_has_knobs_that_fit(text: str) -> None:
    form = Format.parse(text)
    loop = inner.loop_of(form)
    assert loop.length <= loop.cycles()
    assert loop.length < 96 * max(form.bits, 2)  # of 1 bit, two tiles


def test_what_is_found_gets_better() -> None:
    form = Format.parse("w2g128")
    found = list(search.search(form, trials=20, seed=3))
    assert all(later < earlier for earlier, later in pairwise(found))
    assert found[-1].packets == inner.scheduled(form, found[-1].knobs).length


def test_the_command_prints_knobs(capsys: pytest.CaptureFixture[str]) -> None:
    assert search.main(["w2gc", "--trials", "1"]) == 0
    assert capsys.readouterr().out.startswith("w2gc: ")
