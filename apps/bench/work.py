"""What a model must do for a token: the bytes it reads and the multiplications it makes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge.bundle import Bundle
from edge.graph import Attention, Graph, Linear
from edge.kvcache import CacheFormat, KVCache


@dataclass(frozen=True)
class Attended:
    """What a layer's attention reads: bytes a position, of the last `window` positions or all."""

    bytes_per_position: int
    window: int | None

    def step_bytes(self, positions: float) -> float:
        seen = positions if self.window is None else min(self.window, positions)
        return self.bytes_per_position * seen


@dataclass(frozen=True)
class Work:
    """Bytes that a decode step reads, and multiply-accumulates of the projections in a prefill.

    `macs_per_token` are the projections' of one token; `head_macs` the head's, which a prefill
    makes once.
    """

    weight_bytes: int
    attended: tuple[Attended, ...]
    macs_per_token: int
    head_macs: int

    def kv_bytes(self, positions: float) -> float:
        """Bytes of keys and values read by a decode step behind that many positions."""
        return sum(layer.step_bytes(positions) for layer in self.attended)

    def step_bytes(self, positions: float) -> float:
        """Bytes read by a decode step behind that many positions."""
        return self.weight_bytes + self.kv_bytes(positions)

    def prefill_macs(self, tokens: int) -> int:
        """Multiply-accumulates of a prompt's projections; attention is left out."""
        return self.macs_per_token * tokens + self.head_macs


def work_of(bundle: Bundle, cache_format: CacheFormat) -> Work:
    """Count a bundle's work. An embedding apart from the head is read one row a step."""
    graph = bundle.graph
    sizes = {name: bundle.byte_count(name) for op in graph.ops() for name in op.weights()}
    for name in sizes:
        tensor = graph.tensor(name)
        if tensor.role == "embedding":
            sizes[name] //= tensor.shape[0]
    attentions = [op for op in graph.ops() if isinstance(op, Attention)]
    attended = tuple(
        Attended(KVCache([graph.caches[op.cache]], 1, cache_format).bytes_per_token, op.window)
        for op in attentions
    )
    return Work(sum(sizes.values()), attended, *_macs(graph))


def _macs(graph: Graph) -> tuple[int, int]:
    """Weights of the projections of all tokens, and of those after rows are taken."""
    kinds = {"linear": 0, "head": 0}
    for op in graph.ops():
        if isinstance(op, Linear):
            tensor = graph.tensor(op.weight)
            kinds[tensor.role] += math.prod(tensor.shape)
    return kinds["linear"], kinds["head"]


def attended_positions(prompt: int, generated: int) -> float:
    """Positions that a decode step reads of the cache, on average over a generation."""
    return prompt + generated / 2
