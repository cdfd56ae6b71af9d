from __future__ import annotations

from dataclasses import replace

import pytest

from edge.jobs import CPU, NPU, work_s
from npu.soc.model import (
    Chunking,
    attention_s,
    layer_s,
    prefill_jobs,
    restored_layers,
    subgraph_counts,
    subgraph_s,
)
from npu.soc.published import GEMMA, QWEN
from npu.soc.socs import SOCS
from npu.soc.work import ModelWork

SOC = SOCS["SM8650"]
SMALL = ModelWork("small", QWEN.layers[:4], QWEN.head)


def test_each_layer_of_each_chunk_has_six_stages_and_few_have_outliers() -> None:
    jobs = prefill_jobs(SOC, QWEN, 1000)
    names = [job.stage for job in jobs if job.chunk == 3 and not job.part.name]
    assert names[:6] == [
        f"layers.0.{kind}"
        for kind in ("norm", "qkv", "attention", "output", "feed_forward_norm", "feed_forward")
    ]
    assert len(names) == 144
    assert subgraph_counts(QWEN) == (120, 144)  # llm.npu, section 3.2
    outliers = [job for job in jobs if job.part.name == "outliers"]
    assert {job.processor for job in outliers} == {CPU}
    assert len(outliers) == 4 * 3 * len(restored_layers(24, 0.85))


def test_restored_layers_are_those_at_the_ends() -> None:
    assert restored_layers(24, 0.85) == {0, 1, 22, 23}
    assert restored_layers(24, 1.0) == frozenset()
    assert restored_layers(5, 0.0) == frozenset(range(5))


def test_the_npu_takes_its_dispatch_and_then_the_weights_or_the_multiplications() -> None:
    projections = QWEN.layers[0].qkv
    few, many = (subgraph_s(SOC, projections, rows) for rows in (1, 10_000))
    assert few == pytest.approx(
        SOC.npu_dispatch_s + projections.weights / SOC.npu_weight_bytes_s, rel=1e-2
    )
    multiply = 10_000 * projections.weights / SOC.npu_int8_macs_s
    values = 10_000 * projections.values / SOC.npu_activation_bytes_s
    assert many == pytest.approx(SOC.npu_dispatch_s + multiply + values)


def test_attention_grows_with_the_chunk_up_to_its_window() -> None:
    layer = QWEN.layers[0]
    first, second, third = (attention_s(SOC, layer, chunk, 256) for chunk in range(3))
    assert second - first == pytest.approx(third - second)
    assert second - first == pytest.approx(4 * 2048 * 256 * 256 / SOC.cpu_float_ops_s)
    local = replace(layer, window=256)
    windowed = [attention_s(SOC, local, chunk, 256) for chunk in (0, 1, 7)]
    assert windowed[0] == first
    assert windowed[1] == windowed[2] < second


def test_work_grows_with_chunks_and_padding_counts() -> None:
    npu = [work_s(prefill_jobs(SOC, SMALL, tokens), NPU) for tokens in (257, 512, 513)]
    assert npu[0] == npu[1] == pytest.approx(2 / 3 * npu[2])
    halved = prefill_jobs(SOC, SMALL, 512, Chunking(rows=128))
    assert max(job.chunk for job in halved) == 3


def test_less_is_restored_on_the_cpu_where_more_is_pruned() -> None:
    cpu = [
        work_s(prefill_jobs(SOC, GEMMA, 256, Chunking(pruned=pruned)), CPU) for pruned in (0.0, 1.0)
    ]
    assert cpu[0] > cpu[1]


def test_whole_layers_keep_the_npu_busy_and_overlap_weights_with_products() -> None:
    jobs = prefill_jobs(SOC, SMALL, 512, Chunking(mode="w4a16"))
    assert {job.processor for job in jobs} == {NPU}
    assert len(jobs) == 2 * len(SMALL.layers)
    assert jobs[-1].seconds > jobs[0].seconds  # attention sees more keys
    layer = SMALL.layers[0]
    one = [layer_s(SOC, layer, 0, 1, bits) for bits in (4, 2)]
    assert one[0] == pytest.approx(2 * one[1], rel=0.1)
    many = [layer_s(SOC, layer, 0, 256, bits) for bits in (4, 2)]
    assert many[0] == many[1]
