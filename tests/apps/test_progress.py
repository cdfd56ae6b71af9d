from __future__ import annotations

import io

from apps.progress import Bar


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
