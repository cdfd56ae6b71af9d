"""The benchmark of out-of-order execution: its jobs compute a model, in whatever order."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from apps.bench import overlap
from apps.bench.overlap_model import OverlapModel, Sizes
from edge.jobs import CPU, NPU, chunk_jobs
from edge.schedule import GREEDY, IN_ORDER, Rule, run
from npu.soc.work import uniform_work

SIZES = Sizes(rows=8, chunks=3, head_dim=16)
WORK = uniform_work(
    "tiny", layers=2, width=48, query_width=64, kv_width=32, feed_forward=80, vocabulary=10
)


def results(sizes: Sizes, rule: Rule) -> np.ndarray:
    model = OverlapModel(WORK, sizes)
    jobs = chunk_jobs(model.stages(), sizes.chunks, lambda *_: 1.0)
    assert {job.processor for job in jobs} == {CPU, NPU}
    actions = [lambda job=job: model.act(job.chunk, job.stage) for job in jobs]
    run(jobs, actions, rule)
    return model.results.reshape(-1, WORK.layers[0].width)


def test_the_order_changes_nothing() -> None:
    in_order = results(SIZES, IN_ORDER)
    assert np.isfinite(in_order).all()
    assert np.abs(in_order).std() > 0.1
    for rule in (GREEDY, Rule("staggered", 0.3)):
        assert np.array_equal(results(SIZES, rule), in_order)


def test_attention_sees_the_chunks_before_and_nothing_after() -> None:
    """Chunks of 8 and of 24 rows cut the same prompt: the result is the same up to one code."""
    cut, whole = results(SIZES, GREEDY), results(Sizes(24, 1, 16), GREEDY)
    assert np.abs(cut - whole).mean() < 0.01 * np.abs(whole).mean()


def test_all_ways_are_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    words = ["tiny", "--layers", "1", "--rows", "16", "--chunks", "3", "--rounds", "1"]
    assert overlap.main([*words, "--json", "--quiet", "--plot"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("(measured)" in line for line in lines) == 3  # two bars and the bound
    values = json.loads(lines[-1])
    assert values["figures"] == "measured"
    assert len(values["ways"]) == 5
    best = values["ways"]["best"]
    assert best["seconds"] >= max(best["npu_s"], best["cpu_s"]) > 0
