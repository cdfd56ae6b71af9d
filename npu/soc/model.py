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
from edge.npu import Mode
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

# Bits of weights and of activations. w8a8 is subgraphs on the NPU and the rest on the CPU; with 16
# bits of activations it is whole layers on the NPU, as QNN's and T-MAN's.
WEIGHT_BITS: dict[Mode, int] = {"w8a8": 8, "w8a16": 8, "w4a16": 4}

OUTLIERS = "outliers"
_STAGES = ("norm", "qkv", "attention", "output", "feed_forward_norm", "feed_forward")


@dataclass(frozen=True)
class Chunking:
    """How a prompt is cut: rows a chunk, and what of a layer goes where.

    `pruned` is the share of layers whose outliers are not restored (llm.npu: 85 %), in w8a8.
    """

    rows: int = 256
    pruned: float = 0.85
    mode: Mode = "w8a8"

    @property
    def whole_layers(self) -> bool:
        return self.mode != "w8a8"

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


def layer_s(soc: Soc, layer: LayerWork, chunk: int, rows: int, weight_bits: int) -> float:
    """Seconds of a whole layer of one chunk on the NPU, with 16-bit activations.

    Bringing weights and multiplying overlap; values are twice as wide as 8-bit ones.
    """
    bring = layer.weights * weight_bits / 8 / soc.npu_dma_bytes_s
    multiply = rows * layer.weights / soc.npu_fp16_macs_s
    attend = 2 * layer.query_width * _visible(chunk, rows, layer.window) / soc.npu_fp16_macs_s
    values = sum(projections.values for _, projections in layer.projections)
    return max(bring, multiply) + attend + 2 * rows * values / soc.npu_activation_bytes_s


def prefill_jobs(
    soc: Soc, work: ModelWork, tokens: int, chunking: Chunking | None = None
) -> tuple[Job, ...]:
    """The jobs of a prompt's prefill, all layers of all chunks, with modelled seconds."""
    chunking = chunking or Chunking()
    if chunking.whole_layers:
        return whole_layer_jobs(soc, work, tokens, chunking.rows, WEIGHT_BITS[chunking.mode])
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


def whole_layer_jobs(
    soc: Soc, work: ModelWork, tokens: int, rows: int, weight_bits: int
) -> tuple[Job, ...]:
    """The jobs where each layer of each chunk is one on the NPU."""
    stages = [Stage(f"layers.{index}", (Part(NPU),)) for index in range(len(work.layers))]

    @functools.cache
    def of_layer(layer: LayerWork, chunk: int) -> float:
        return layer_s(soc, layer, chunk, rows, weight_bits)

    def seconds(chunk: int, stage: Stage, part: Part) -> float:
        del part
        return of_layer(work.layers[int(stage.name.split(".")[1])], chunk)

    return chunk_jobs(stages, Chunking(rows).count(tokens), seconds)


def restored_layers(layers: int, pruned: float) -> frozenset[int]:
    """Layers whose outliers are restored: those nearest to both ends matter most (llm.npu, 3.3)."""
    keep = round((1 - pruned) * layers)
    nearest = sorted(range(layers), key=lambda index: (min(index, layers - 1 - index), index))
    return frozenset(nearest[:keep])


def subgraph_counts(work: ModelWork, *, whole_layers: bool = False) -> tuple[int, int]:
    """Subgraphs that all chunks share, and all subgraphs: only attention depends on the chunk.

    Whole layers are shared where keys and masks are inputs, as they are there.
    """
    layers = len(work.layers)
    if whole_layers:
        return layers, layers
    return (len(_STAGES) - 1) * layers, len(_STAGES) * layers


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
