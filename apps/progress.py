"""A progress line on standard error: redrawn on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

_TERMINAL_INTERVAL_S = 0.1
_LOG_INTERVAL_S = 10.0
_WIDTH = 30


class Bar:
    """Shows stages of work. Implements `edge.watch.Watcher`.

    A stage shorter than `patience_s` shows nothing, so that quick work stays quiet.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        patience_s: float = 1.0,
    ) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._clock = clock
        self._patience_s = patience_s
        self._terminal = self._stream.isatty()
        self._interval = _TERMINAL_INTERVAL_S if self._terminal else _LOG_INTERVAL_S
        self._drawn = False
        self.start("", 0, "")

    def start(self, stage: str, total: int, unit: str) -> None:
        """Begin a stage of `total` units."""
        self.finish()
        self._stage, self._total, self._unit = stage, total, unit
        self._done = 0
        self._began = self._clock()
        self._next = self._began + (self._patience_s if self._terminal else self._interval)

    def advance(self, count: int) -> None:
        """Count `count` more units as done."""
        self._done += count
        now = self._clock()
        if now >= self._next and not self._quiet:
            self._next = now + self._interval
            self._draw(now)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        if not self._quiet:
            self.finish()
            print(text, file=self._stream, flush=True)

    def finish(self) -> None:
        """Clear the line."""
        if self._drawn and self._terminal:
            print("\r\x1b[K", end="", file=self._stream, flush=True)
        self._drawn = False

    def _draw(self, now: float) -> None:
        share = min(self._done / self._total, 1.0) if self._total else 0.0
        filled = "#" * int(share * _WIDTH)
        left = (now - self._began) / share * (1 - share) if share else 0.0
        line = (
            f"{self._stage} [{filled:.<{_WIDTH}}] {100 * share:3.0f} % "
            f"{_scaled(self._done)} of {_scaled(self._total)} {self._unit}, {left:.0f} s left"
        )
        before, after = ("\r", "\x1b[K") if self._terminal else ("", "\n")
        print(before + line, end=after, file=self._stream, flush=True)
        self._drawn = True


def _scaled(count: float) -> str:
    for prefix in ("", "k", "M"):
        if count < 1000:
            return f"{count:.3g}{prefix}"
        count /= 1000
    return f"{count:.3g}G"
