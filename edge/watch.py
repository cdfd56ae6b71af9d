"""How long work tells what it is doing, without knowing who listens.

A conversion is given its listener; what a load does deep inside finds the caller's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Watcher(Protocol):
    """Receives the progress of long work."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """A stage of `total` units begins."""
        ...

    def advance(self, count: int) -> None:
        """`count` more units are done."""
        ...

    def note(self, text: str) -> None:
        """Something that the user should know."""
        ...


class Silent:
    """Listens to nothing."""

    def start(self, stage: str, total: int, unit: str) -> None:
        pass

    def advance(self, count: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass


_LISTENING: ContextVar[Watcher] = ContextVar("listening", default=Silent())  # noqa: B039


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Within it, `listening()` is this one."""
    token = _LISTENING.set(watcher)
    try:
        yield
    finally:
        _LISTENING.reset(token)


def listening() -> Watcher:
    """Who wants to know what a load does; by default nobody."""
    return _LISTENING.get()
