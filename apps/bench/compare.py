"""The benchmark: ceilings, then ours and the peer in turns, then how fast each opens."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.bench.measure import Sample, Spread, alternate
from apps.bench.process import Child
from edge.watch import Watcher

if TYPE_CHECKING:
    from apps.bench.ceilings import Ceilings

OURS, PEER = "lutra", "llama.cpp"
READ, MULTIPLY = "reading", "multiplying"

# Fresh processes that open the model, and the prompt that they answer first.
OPENINGS = 3
OPENING_PROMPT = 8


@dataclass(frozen=True)
class Opener:
    """How to start a side: its process, and the request that loads its model."""

    start: Callable[[], Child]
    load: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What to run: a prompt of so many random tokens, so many drawn after it, so often."""

    prompt: int
    generate: int
    repeats: int
    threads: int
    vocabulary: int

    def tokens(self) -> list[int]:
        """The prompt: the same random ids every time."""
        ids = np.random.default_rng(0).integers(0, self.vocabulary, self.prompt)
        return [int(i) for i in ids]


@dataclass(frozen=True)
class CeilingFigures:
    """Measured ceilings: GB/s by threads at the start; GB/s, and multiply-accumulates a second by
    unit, in every round."""

    start_gb_s: dict[int, float]
    read_gb_s: list[float]
    mac_s: dict[str, list[float]]

    def mac_rates(self) -> dict[str, float]:
        """Median multiply-accumulates a second by unit."""
        return {name: statistics.median(rates) for name, rates in self.mac_s.items()}


@dataclass
class SideFigures:
    """What was measured of one side, in the order of the rounds."""

    samples: list[Sample] = field(default_factory=list)
    opening_s: list[float] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)
    loaded: dict[str, Any] = field(default_factory=dict)

    def spread(self, name: str) -> Spread:
        """Median and range of a figure of the samples."""
        return Spread.of([getattr(sample, name) for sample in self.samples])


@dataclass
class Figures:
    """All of a run; `ceilings` is None where they were not measured."""

    ceilings: CeilingFigures | None
    sides: dict[str, SideFigures]

    def read_bandwidth_gb_s(self) -> float | None:
        return None if self.ceilings is None else statistics.median(self.ceilings.read_gb_s)

    def decode_share(self, side: str, step_bytes: float) -> float | None:
        """Median over the rounds of bytes read a second over the round's bandwidth."""
        if self.ceilings is None:
            return None
        rates = [sample.decode_tok_s for sample in self.sides[side].samples]
        pairs = zip(rates, self.ceilings.read_gb_s, strict=True)
        return statistics.median(rate * step_bytes / 1e9 / read for rate, read in pairs)


def try_out(opener: Opener) -> None:
    """Open a model once and close it: what cannot run is refused before anything is measured, and
    code is compiled and cached in a process whose memory does not count."""
    with opener.start() as child:
        child.ask("load", **opener.load)


def start_bandwidths(ceilings: Ceilings | None, watcher: Watcher) -> dict[int, float]:
    """GB/s read by 1 thread, 2, and so on to all; empty where there are no ceilings."""
    rates: dict[int, float] = {}
    if ceilings is not None:
        watcher.start("read bandwidth", ceilings.threads, "thread counts")
        for count in range(1, ceilings.threads + 1):
            rates[count] = ceilings.read_bandwidth_gb_s(count)
            watcher.advance(1)
    return rates


def compare(
    plan: Plan,
    openers: Mapping[str, Opener],
    ceilings: Ceilings | None,
    start: dict[int, float],
    watcher: Watcher,
) -> Figures:
    """Measure every side that `openers` names; `start` is what `start_bandwidths` found."""
    sides = {name: SideFigures() for name in openers}
    with _loaded(openers, sides, watcher) as children:
        prompt = plan.tokens()
        samples: dict[str, Callable[[], Any]] = {
            name: partial(_sample, child, prompt, plan.generate) for name, child in children.items()
        }
        probes = samples if ceilings is None else with_ceilings(ceilings, samples)
        watcher.start("rounds", len(probes) * (plan.repeats + 1), "turns")
        taken = alternate(probes, plan.repeats, advance=partial(watcher.advance, 1))
        for name, child in children.items():
            sides[name].samples = taken[name]
            sides[name].memory = child.ask("memory")
    watcher.start("opening", OPENINGS * len(openers), "models")
    for _ in range(OPENINGS):
        for name, opener in openers.items():
            sides[name].opening_s.append(_opening_s(opener, prompt[:OPENING_PROMPT]))
            watcher.advance(1)
    return Figures(_ceiling_figures(start, taken) if start else None, sides)


def with_ceilings(
    ceilings: Ceilings, samples: Mapping[str, Callable[[], Any]]
) -> dict[str, Callable[[], Any]]:
    """What is measured in every round, at all threads: reading next to our decode, since what a
    shared machine reads may change within seconds."""
    threads = ceilings.threads
    first = {
        MULTIPLY: lambda: {rate.name: ceilings.mac_s(rate, threads) for rate in ceilings.rates}
    }
    reading = {READ: lambda: ceilings.read_bandwidth_gb_s(threads)}
    return {**first, OURS: samples[OURS], **reading, **samples}


def _ceiling_figures(start: dict[int, float], taken: Mapping[str, list[Any]]) -> CeilingFigures:
    rounds: list[dict[str, float]] = taken[MULTIPLY]
    mac_s = {name: [rates[name] for rates in rounds] for name in rounds[0]}
    return CeilingFigures(start, taken[READ], mac_s)


@contextlib.contextmanager
def _loaded(
    openers: Mapping[str, Opener], sides: Mapping[str, SideFigures], watcher: Watcher
) -> Iterator[dict[str, Child]]:
    """All sides in processes of their own, with their models loaded."""
    with contextlib.ExitStack() as stack:
        children = {}
        watcher.start("loading", len(openers), "models")
        for name, opener in openers.items():
            children[name] = stack.enter_context(opener.start())
            sides[name].loaded = children[name].ask("load", **opener.load)
            watcher.advance(1)
        yield children


def _sample(child: Child, prompt: list[int], generate: int) -> Sample:
    answer = child.ask("generate", prompt=prompt, count=generate)
    return Sample(len(prompt), generate, answer["first_token_s"], answer["rest_s"])


def _opening_s(opener: Opener, prompt: list[int]) -> float:
    """Seconds from opening a model in a fresh process to the first token of a short prompt."""
    with opener.start() as child:
        loaded = child.ask("load", **opener.load)
        answer = child.ask("generate", prompt=prompt, count=1)
    seconds: float = loaded["load_s"] + answer["first_token_s"]
    return seconds
