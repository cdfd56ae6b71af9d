"""Measuring two systems that share a noisy machine: in turns, and by medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

# OpenMP's threads of the peer spin for 0.2 s after their last work.
REST_S = 0.5

LEAST_REPEATS = 5


@dataclass(frozen=True)
class Sample:
    """One run of a prompt and the tokens after it.

    `first_token_s` is from the prompt's token ids to the first token drawn, `rest_s` from there to
    the last one.
    """

    prompt_tokens: int
    generated_tokens: int
    first_token_s: float
    rest_s: float

    @property
    def prefill_tok_s(self) -> float:
        return self.prompt_tokens / self.first_token_s

    @property
    def decode_tok_s(self) -> float:
        """Rate of the steps after the first token."""
        return (self.generated_tokens - 1) / self.rest_s


@dataclass(frozen=True)
class Spread:
    """A figure measured several times."""

    median: float
    least: float
    most: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(statistics.median(values), min(values), max(values))


def alternate(
    probes: Mapping[str, Callable[[], T]],
    repeats: int,
    rest: Callable[[float], None] = time.sleep,
    advance: Callable[[], None] | None = None,
) -> dict[str, list[T]]:
    """Take every probe in turn, `repeats` rounds of them, after one round that is not counted.

    What slows the machine down for a while so slows all of them. `advance` hears when each turn
    has ended.
    """
    taken: dict[str, list[T]] = {name: [] for name in probes}
    for round_ in range(repeats + 1):
        for name, probe in probes.items():
            rest(REST_S)
            value = probe()
            if round_:
                taken[name].append(value)
            if advance is not None:
                advance()
    return taken
