"""How a conversion tells what it is doing, without knowing who listens."""

from __future__ import annotations

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
