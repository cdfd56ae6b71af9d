"""The work of a prefill as a DAG of jobs: one for each chunk, subgraph and processor.

A chunk goes through the model's stages in order. Attention also needs the keys of the chunks before
it, so a stage may wait for the stage before it in all earlier chunks (llm.npu, section 3.4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from edge.errors import BadGraph

CPU = "cpu"
NPU = "npu"


@dataclass(frozen=True)
class Part:
    """What one processor does of a stage; `name` tells apart the parts of one stage."""

    processor: str
    name: str = ""


@dataclass(frozen=True)
class Stage:
    """A step that every chunk takes. Its parts run beside each other; the next step waits for all.

    A stage that is `across` chunks waits for the stage before it in all chunks up to its own.
    """

    name: str
    parts: tuple[Part, ...]
    across: bool = False


@dataclass(frozen=True)
class Job:
    """What is scheduled as one piece: `part` of `stage` for one chunk.

    `seconds` is how long it is expected to take. `after` are the places, in the list of all jobs,
    of those it waits for; they stand before it.
    """

    chunk: int
    stage: str
    part: Part
    seconds: float
    after: tuple[int, ...] = ()

    @property
    def processor(self) -> str:
        return self.part.processor

    @property
    def name(self) -> str:
        part = f" {self.part.name}" if self.part.name else ""
        return f"chunk {self.chunk} {self.stage}{part}"


def chunk_jobs(
    stages: Sequence[Stage], chunks: int, seconds: Callable[[int, Stage, Part], float]
) -> tuple[Job, ...]:
    """All jobs of a prefill, chunk after chunk: the order in which one processor would do them.

    `seconds(chunk, stage, part)` is what a job is expected to take.
    """
    jobs: list[Job] = []
    places: list[list[tuple[int, ...]]] = []  # [chunk][stage] -> places of its jobs
    for chunk in range(chunks):
        places.append([])
        for index, stage in enumerate(stages):
            first = chunk if not stage.across else 0
            waits = [places[c][index - 1] for c in range(first, chunk + 1) if index]
            after = tuple(place for group in waits for place in group)
            made = [
                Job(chunk, stage.name, part, seconds(chunk, stage, part), after)
                for part in stage.parts
            ]
            places[chunk].append(tuple(range(len(jobs), len(jobs) + len(made))))
            jobs += made
    return tuple(jobs)


def check_jobs(jobs: Sequence[Job]) -> None:
    """Raises BadGraph for a job that waits for one not before it, or whose time makes no sense."""
    for place, job in enumerate(jobs):
        late = [other for other in job.after if not 0 <= other < place]
        if late:
            raise BadGraph(f"job {place} ({job.name}) waits for job {late[0]}, which is not before")
        if not 0 <= job.seconds < math.inf:
            raise BadGraph(f"job {place} ({job.name}) takes {job.seconds} s")


def processors_of(jobs: Iterable[Job]) -> list[str]:
    """The processors that have jobs, in alphabetical order."""
    return sorted({job.processor for job in jobs})


def work_s(jobs: Iterable[Job], processor: str) -> float:
    """Seconds of work that a processor has."""
    return sum(job.seconds for job in jobs if job.processor == processor)


def critical_path_s(jobs: Sequence[Job]) -> float:
    """Seconds of the longest chain of jobs that wait for each other."""
    ends: list[float] = []
    for job in jobs:
        ends.append(max((ends[other] for other in job.after), default=0.0) + job.seconds)
    return max(ends, default=0.0)


def lower_bound_s(jobs: Sequence[Job]) -> float:
    """What no schedule can be shorter than: the most work of a processor, or the critical path."""
    work = [work_s(jobs, processor) for processor in processors_of(jobs)]
    return max([critical_path_s(jobs), *work])
