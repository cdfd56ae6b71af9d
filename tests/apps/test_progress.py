from __future__ import annotations

import io
from pathlib import Path
from typing import ClassVar

import pytest

from apps.progress import Bar
from tests.apps.conftest import Lutra


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def work(stream: io.StringIO, steps: int, *, quiet: bool = False) -> str:
    clock = Clock()
    bar = Bar(stream=stream, clock=clock, quiet=quiet)
    bar.start("weights", steps * 1000, "weights")
    for _ in range(steps):
        clock.now += 1
        bar.advance(1000)
    bar.finish()
    return stream.getvalue()


def test_a_terminal_shows_share_and_time_left_and_ends_clean() -> None:
    text = work(Terminal(), 4)
    assert "50 % 2k of 4k weights, 2 s left" in text
    assert text.endswith("\r\x1b[K")


def test_elsewhere_there_is_a_line_every_ten_seconds() -> None:
    lines = work(io.StringIO(), 35).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("weights [")


def test_quick_work_and_quiet_work_show_nothing() -> None:
    assert work(io.StringIO(), 5) == ""
    assert work(Terminal(), 10, quiet=True) == ""


class Steps(Bar):
    """Counts what it would show."""

    made: ClassVar[list[Steps]] = []

    def __init__(self, *, quiet: bool, patience_s: float) -> None:
        super().__init__(quiet=quiet, patience_s=patience_s, stream=io.StringIO())
        self.made.append(self)
        self.quiet = quiet
        self.shown: dict[str, list[int]] = {}

    def start(self, stage: str, total: int, unit: str) -> None:
        super().start(stage, total, unit)
        if stage:
            self.shown = {stage: [0, total]}

    def advance(self, count: int) -> None:
        super().advance(count)
        self.shown[self._stage][0] += count


def test_what_a_first_load_compiles_is_shown(
    lutra: Lutra, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle: Path
) -> None:
    """Every step is counted, whether it is compiled or comes from the cache; not in JSON."""
    pytest.importorskip("llvmlite")
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path))
    monkeypatch.setattr("apps.options.Bar", Steps)
    monkeypatch.setattr("apps.options._is_terminal", lambda: True)
    words = ("run", bundle, "--tokens", "1", "--greedy", "--max-tokens", 1)
    for options in ((), ("--json",)):
        assert lutra(*words, *options).code == 0
        bar = Steps.made.pop()
        done, total = bar.shown["compiling"]
        assert done == total > 0
        assert bar.quiet == bool(options)
