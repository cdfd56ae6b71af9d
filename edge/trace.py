"""Traces of runs and simulations, in the JSON that Perfetto (ui.perfetto.dev) and Chrome read.

One process of the trace is one run, one track of it one processor. Times in the file are
microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edge.disk import write_text
from edge.generate import Record
from edge.schedule import Timeline

# What the times are: of this machine, of an emulator on it, or computed from parameters.
Word = Literal["measured", "emulated", "modelled"]


@dataclass(frozen=True)
class Slice:
    """A piece of work on a track, in seconds from the start of its run."""

    track: str
    name: str
    start_s: float
    end_s: float
    details: tuple[tuple[str, str | int | float], ...] = ()


@dataclass(frozen=True)
class Run:
    """The slices of one run; `name` is shown above its tracks, with `word`."""

    name: str
    word: Word
    slices: tuple[Slice, ...]


def timeline_slices(timeline: Timeline, *, start_s: float = 0.0) -> tuple[Slice, ...]:
    """What a schedule ran, as slices that begin at `start_s`."""
    return tuple(
        Slice(
            job.processor,
            job.name,
            start_s + span.start_s,
            start_s + span.end_s,
            (("chunk", job.chunk), ("stage", job.stage), ("expected_ms", 1e3 * job.seconds)),
        )
        for span in timeline.spans
        for job in [timeline.jobs[span.place]]
    )


def generation_slices(records: Sequence[Record], track: str) -> tuple[Slice, ...]:
    """Prefill and one slice a token after it, from a generation's records."""
    if not records:
        return ()
    first, prefill_s = records[0], records[0].prefill_s
    tokens = first.prompt_tokens - first.reused_tokens
    slices = [Slice(track, "prefill", 0.0, prefill_s, (("tokens", tokens),))]
    before = 0.0
    for index, record in enumerate(records[1:], 1):
        details = () if record.token is None else (("token", record.token),)
        name = f"decode {index}"
        slices.append(Slice(track, name, prefill_s + before, prefill_s + record.decode_s, details))
        before = record.decode_s
    return tuple(slices)


def to_json(runs: Iterable[Run]) -> dict[str, Any]:
    """The trace as plain JSON values."""
    events: list[dict[str, Any]] = []
    words = []
    for process, run in enumerate(runs, 1):
        words.append(run.word)
        events.append(_named("process_name", process, 0, f"{run.name} ({run.word})"))
        tracks = list(dict.fromkeys(piece.track for piece in run.slices))
        for thread, track in enumerate(sorted(tracks), 1):
            events.append(_named("thread_name", process, thread, track))
        threads = {track: thread for thread, track in enumerate(sorted(tracks), 1)}
        events += [_complete(piece, process, threads[piece.track]) for piece in run.slices]
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"times": ", ".join(dict.fromkeys(words))},
    }


def write_trace(path: str | Path, runs: Iterable[Run]) -> None:
    """Write a trace, whole or not at all. Raises NoSpace or OutputExists (a forbidden place)."""
    write_text(Path(path), json.dumps(to_json(runs), allow_nan=False))


def _named(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


def _complete(piece: Slice, process: int, thread: int) -> dict[str, Any]:
    return {
        "name": piece.name,
        "cat": piece.track,
        "ph": "X",
        "pid": process,
        "tid": thread,
        "ts": 1e6 * piece.start_s,
        "dur": 1e6 * (piece.end_s - piece.start_s),
        "args": dict(piece.details),
    }
