"""Mixed precision: which format each tensor gets, for the least cost within a size. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge.errors import UsageError
from edge.formats import Format

_SIZE = re.compile(r"(\d+(?:\.\d+)?)(bpw|MB|MiB)")


@dataclass(frozen=True)
class Choice:
    """A format that a tensor may have, its size, and what it costs in quality."""

    form: Format
    byte_count: int
    cost: float


def parse_size(text: str, parameter_count: int) -> int:
    """Bytes that `3.2bpw` (bits a weight), `300MiB` or `300MB` stand for. Raises UsageError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"size {text!r}", "use bits a weight as 3.2bpw, or 300MiB or 300MB")
    value = float(match[1])
    scale = {"bpw": parameter_count / 8, "MB": 1e6, "MiB": 1 << 20}[match[2]]
    return int(value * scale)


def allocate(choices: Mapping[str, Sequence[Choice]], budget: int) -> dict[str, Choice]:
    """A choice for each tensor that together take at most `budget` bytes.

    All begin with their smallest; then, one at a time, the step that saves most cost a byte is
    taken, as long as there is one that fits. Raises UsageError where even the smallest do not.
    """
    taken = {
        name: min(offered, key=lambda c: (c.byte_count, c.cost))
        for name, offered in choices.items()
    }
    left = budget - sum(choice.byte_count for choice in taken.values())
    if left < 0:
        raise UsageError(
            f"a size of {budget} bytes, the smallest formats take {budget - left}",
            "ask for a larger size, or larger groups",
        )
    while step := _best_step(choices, taken, left):
        name, choice = step
        left -= choice.byte_count - taken[name].byte_count
        taken[name] = choice
    return taken


def _best_step(
    choices: Mapping[str, Sequence[Choice]], taken: Mapping[str, Choice], left: int
) -> tuple[str, Choice] | None:
    best, most = None, 0.0
    for name, offered in choices.items():
        now = taken[name]
        for choice in offered:
            extra = choice.byte_count - now.byte_count
            if choice.cost < now.cost and extra <= left:
                saved = (now.cost - choice.cost) / max(extra, 1)
                if saved > most:
                    best, most = (name, choice), saved
    return best
