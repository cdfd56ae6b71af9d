from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from edge.errors import OutputExists
from edge.generate import Record
from edge.jobs import CPU, NPU, Job, Part
from edge.schedule import IN_ORDER, simulate
from edge.trace import Run, Slice, generation_slices, timeline_slices, to_json, write_trace

JOBS = (
    Job(0, "qkv", Part(NPU), 0.002),
    Job(0, "attention", Part(CPU), 0.003, (0,)),
    Job(0, "output", Part(NPU), 0.001, (1,)),
)


def test_a_schedule_has_one_track_a_processor() -> None:
    run = Run("tiny", "modelled", timeline_slices(simulate(JOBS, IN_ORDER)))
    data = to_json([run])
    names = {
        (e["name"], e["tid"]): e["args"]["name"] for e in data["traceEvents"] if e["ph"] == "M"
    }
    assert names == {
        ("process_name", 0): "tiny (modelled)",
        ("thread_name", 1): "cpu",
        ("thread_name", 2): "npu",
    }
    work = [e for e in data["traceEvents"] if e["ph"] == "X"]
    assert [(e["name"], e["tid"]) for e in work] == [
        ("chunk 0 qkv", 2),
        ("chunk 0 attention", 1),
        ("chunk 0 output", 2),
    ]
    assert [e["ts"] for e in work] == pytest.approx([0, 2000, 5000])
    assert [e["dur"] for e in work] == pytest.approx([2000, 3000, 1000])
    assert work[1]["args"] == {"chunk": 0, "stage": "attention", "expected_ms": 3.0}
    assert data["otherData"] == {"times": "modelled"}


def test_two_runs_are_two_processes() -> None:
    runs = [Run(name, "measured", (Slice("cpu", "work", 0, 1),)) for name in ("a", "b")]
    work = [e for e in to_json(runs)["traceEvents"] if e["ph"] == "X"]
    assert [e["pid"] for e in work] == [1, 2]


def test_a_generation_is_prefill_and_tokens() -> None:
    records = [
        Record("", 5, 7, 1, prefill_s=0.5, decode_s=0.0, reused_tokens=3),
        Record("a", 6, 7, 2, prefill_s=0.5, decode_s=0.1),
        Record("b", None, 7, 2, prefill_s=0.5, decode_s=0.3, finish_reason="context"),
    ]
    slices = generation_slices(records, "cpu")
    assert [piece.name for piece in slices] == ["prefill", "decode 1", "decode 2"]
    assert slices[0].details == (("tokens", 4),)
    assert slices[-1].end_s == pytest.approx(0.8)
    assert all(a.end_s == b.start_s for a, b in pairwise(slices))
    assert generation_slices([], "cpu") == ()


def test_a_trace_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    run = Run("tiny", "modelled", timeline_slices(simulate(JOBS, IN_ORDER)))
    write_trace(tmp_path / "trace.json", [run])
    assert json.loads((tmp_path / "trace.json").read_text()) == to_json([run])
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputExists, match="folder"):
        write_trace(tmp_path / "folder", [run])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "trace.json"]
