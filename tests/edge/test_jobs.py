from __future__ import annotations

import math

import pytest

from edge.errors import BadGraph
from edge.jobs import (
    CPU,
    NPU,
    Job,
    Part,
    Stage,
    check_jobs,
    chunk_jobs,
    critical_path_s,
    lower_bound_s,
    work_s,
)

STAGES = (
    Stage("qkv", (Part(NPU), Part(CPU, "outliers"))),
    Stage("attention", (Part(CPU),), across=True),
    Stage("output", (Part(NPU),)),
)


def seconds(chunk: int, stage: Stage, part: Part) -> float:
    return 10.0 * chunk + len(stage.parts) + (part.processor == CPU)


def test_attention_waits_for_the_keys_of_all_chunks_before() -> None:
    jobs = chunk_jobs(STAGES, 3, seconds)
    waits = {job.name: [jobs[place].name for place in job.after] for job in jobs}
    assert waits["chunk 2 attention"] == [
        f"chunk {chunk} qkv{part}" for chunk in range(3) for part in ("", " outliers")
    ]
    assert waits["chunk 1 output"] == ["chunk 1 attention"]
    assert waits["chunk 2 qkv"] == []
    check_jobs(jobs)


def test_jobs_stand_chunk_after_chunk_with_their_seconds() -> None:
    jobs = chunk_jobs(STAGES, 2, seconds)
    assert [job.name for job in jobs[:4]] == [
        "chunk 0 qkv",
        "chunk 0 qkv outliers",
        "chunk 0 attention",
        "chunk 0 output",
    ]
    assert [job.seconds for job in jobs] == [2, 3, 2, 1, 12, 13, 12, 11]
    assert work_s(jobs, NPU) == 2 + 1 + 12 + 11


def test_the_bound_is_the_busiest_processor_or_the_longest_chain() -> None:
    chain = (Job(0, "a", Part(NPU), 3), Job(0, "b", Part(CPU), 4, (0,)))
    assert critical_path_s(chain) == lower_bound_s(chain) == 7
    wide = tuple(Job(0, "a", Part(NPU), 3) for _ in range(4))
    assert (critical_path_s(wide), lower_bound_s(wide)) == (3, 12)
    assert lower_bound_s(()) == 0


@pytest.mark.parametrize(
    ("job", "match"),
    [
        (Job(0, "late", Part(CPU), 1, (1,)), r"job 1 \(chunk 0 late\) waits for job 1"),
        (Job(0, "late", Part(CPU), 1, (-1,)), "waits for job -1"),
        (Job(0, "endless", Part(CPU), math.inf), "takes inf s"),
        (Job(0, "unknown", Part(CPU), math.nan), "takes nan s"),
        (Job(0, "early", Part(CPU), -1), "takes -1 s"),
    ],
)
def test_jobs_that_cannot_be_scheduled_are_refused(job: Job, match: str) -> None:
    with pytest.raises(BadGraph, match=match):
        check_jobs((Job(0, "first", Part(NPU), 1), job))
