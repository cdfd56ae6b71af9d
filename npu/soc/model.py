"""Time of jobs on a SoC, from shapes: what the scheduler plans with and `lutra plan` shows.

NPU, 8-bit: a subgraph takes its dispatch, then each matrix the longer of bringing its weights from
memory and multiplying, and the values that go in and out are quantized and laid out. At 256 tokens
a chunk the weights decide: the published matmul table is a straight line in their bytes.

CPU: attention goes by its multiply-adds, norms and residuals by their bytes, and every job pays for
the hand-over between processors.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from edge.jobs import CPU, NPU, Job, Part, Stage, chunk_jobs
from npu.soc.socs import Soc
from npu.soc.work import LayerWork, ModelWork, Projections

# Activation channels of a projection that overflow in one inference: 5 to 15 (llm.npu, 3.3).
HOT_CHANNELS = 10

# Bytes of memory traffic a value: a norm reads the 8-bit output of the subgraph before, adds it to
# the float residual (read, written), normalizes that, and writes 8 bits; attention reads 8 bits and
# writes and reads float; its result is read as float and written as 8 bits.
_NORM_BYTES = 1 + 8 + 4 + 1
_QKV_BYTES = 1 + 8
_ATTENDED_BYTES = 4 + 1

OUTLIERS = "outliers"
_STAGES = ("norm", "qkv", "attention", "output", "feed_forward_norm", "feed_forward")


@dataclass(frozen=True)
class Chunking:
    """How a prompt is cut, and in how many layers outliers are not restored (llm.npu: 85 %)."""

    rows: int = 256
    pruned: float = 0.85

    def count(self, tokens: int) -> int:
        """Chunks that a prompt takes; the last one is padded."""
        return -(-tokens // self.rows)


def subgraph_s(soc: Soc, projections: Projections, rows: int) -> float:
    """Seconds of one 8-bit subgraph of `rows` tokens on the NPU."""
    matrices = sum(
        max(m.weights / soc.npu_weight_bytes_s, rows * m.weights / soc.npu_int8_macs_s)
        for m in projections.matrices
    )
    return soc.npu_dispatch_s + matrices + rows * projections.values / soc.npu_activation_bytes_s


def attention_s(soc: Soc, layer: LayerWork, chunk: int, rows: int) -> float:
    """Seconds of attention of one chunk on the CPU, with rotation and the cache's writing."""
    operations = 4 * layer.query_width * _visible(chunk, rows, layer.window)
    values = layer.query_width + 2 * layer.kv_width
    moved = rows * (_QKV_BYTES * values + _ATTENDED_BYTES * layer.query_width)
    return soc.hand_over_s + operations / soc.cpu_float_ops_s + moved / soc.cpu_memory_bytes_s


def norm_s(soc: Soc, layer: LayerWork, rows: int) -> float:
    """Seconds of a residual sum and a norm on the CPU."""
    return soc.hand_over_s + rows * layer.width * _NORM_BYTES / soc.cpu_memory_bytes_s


def outliers_s(soc: Soc, projections: Projections, rows: int) -> float:
    """Seconds of a subgraph's outliers on the CPU: a thin matmul on the hot channels."""
    operations = 2 * rows * HOT_CHANNELS * sum(m.out for m in projections.matrices)
    return soc.hand_over_s + operations / soc.cpu_float_ops_s


def prefill_jobs(
    soc: Soc, work: ModelWork, tokens: int, chunking: Chunking | None = None
) -> tuple[Job, ...]:
    """The jobs of a prompt's prefill, all layers of all chunks, with modelled seconds."""
    chunking = chunking or Chunking()
    restored = restored_layers(len(work.layers), chunking.pruned)
    stages = [
        stage
        for index in range(len(work.layers))
        for stage in _layer_stages(index, restored=index in restored)
    ]
    rows = chunking.rows

    @functools.cache
    def of_layer(layer: LayerWork, kind: str, part: Part, chunk: int) -> float:
        projections = dict(layer.projections).get(kind)
        if projections is None:
            if kind == "attention":
                return attention_s(soc, layer, chunk, rows)
            return norm_s(soc, layer, rows)
        if part.processor == NPU:
            return subgraph_s(soc, projections, rows)
        return outliers_s(soc, projections, rows)

    def seconds(chunk: int, stage: Stage, part: Part) -> float:
        _, index, kind = stage.name.split(".")
        return of_layer(work.layers[int(index)], kind, part, chunk if kind == "attention" else 0)

    return chunk_jobs(stages, chunking.count(tokens), seconds)


def restored_layers(layers: int, pruned: float) -> frozenset[int]:
    """Layers whose outliers are restored: those nearest to both ends matter most (llm.npu, 3.3)."""
    keep = round((1 - pruned) * layers)
    nearest = sorted(range(layers), key=lambda index: (min(index, layers - 1 - index), index))
    return frozenset(nearest[:keep])


def subgraph_counts(work: ModelWork) -> tuple[int, int]:
    """Subgraphs that all chunks share, and all subgraphs: only attention depends on the chunk."""
    total = len(_STAGES) * len(work.layers)
    return total - len(work.layers), total


def _layer_stages(index: int, *, restored: bool) -> list[Stage]:
    linear = (Part(NPU), Part(CPU, OUTLIERS)) if restored else (Part(NPU),)
    parts = dict.fromkeys(("qkv", "output", "feed_forward"), linear)
    return [
        Stage(f"layers.{index}.{kind}", parts.get(kind, (Part(CPU),)), across=kind == "attention")
        for kind in _STAGES
    ]


def _visible(chunk: int, rows: int, window: int | None) -> int:
    """Keys that the rows of a chunk see, summed."""
    first = chunk * rows
    if window is None:
        return rows * first + rows * (rows + 1) // 2
    return sum(min(position + 1, window) for position in range(first, first + rows))
