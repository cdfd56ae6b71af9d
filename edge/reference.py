"""The reference interpreter: NumPy, one function an op. What it computes is the definition.

Every other backend is held to it, and it is held to Transformers (tests/golden). It is written to
be read; BLAS makes it fast enough for small models. Weights are dequantized to float32 when first
used and kept while they fit in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.backend import Artifact
from edge.bundle import Bundle
from edge.errors import UnknownTarget
from edge.formats import Format
from edge.graph import (
    Add,
    Attention,
    Embed,
    Gate,
    GateFunction,
    Graph,
    Int8,
    Linear,
    Norm,
    Op,
    Rope,
    Softcap,
    Subgraph,
    Take,
)
from edge.kvcache import KVCache
from edge.planes import StoredTensor
from edge.target import Machine, Target

Values = NDArray[np.float32]

# Prefill length of the reference: long enough for BLAS, short enough for attention scores.
CHUNK = 256


@dataclass
class Step:
    """One run in progress: its tokens, the cache, and the values made so far."""

    tokens: NDArray[np.int32]
    count: int
    logit_rows: int
    cache: KVCache
    values: dict[str, Values]

    @property
    def positions(self) -> NDArray[np.float32]:
        """Position of every row, [rows]."""
        start = self.cache.length
        return np.arange(start, start + len(self.tokens), dtype=np.float32)


class ReferenceProgram:
    """A bundle's graph, interpreted. See `edge.backend.Program`."""

    target = Target("ref")
    chunks = (1, 16, CHUNK)

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._weights = WeightCache(bundle)

    def run(self, tokens: NDArray[np.int32], count: int, cache: KVCache, logit_rows: int) -> Values:
        """Run a chunk; see `edge.backend.Program.run`."""
        cache.reserve(count)
        step = Step(tokens, count, logit_rows, cache, {})
        for subgraph in self._bundle.graph.subgraphs:
            if subgraph.kind != "head" or logit_rows:
                run_subgraph(subgraph, step, self._weights)
        cache.advance(count)
        if not logit_rows:
            return np.empty((0, self._bundle.graph.vocabulary), np.float32)
        return step.values[self._bundle.graph.last.out]

    def best(self, tokens: NDArray[np.int32], count: int, cache: KVCache) -> tuple[int, float]:
        """The best next token and its logit; see `edge.backend.PicksBest`."""
        logits = self.run(tokens, count, cache, 1)[0]
        token = int(np.argmax(logits))
        return token, float(logits[token])


def run_subgraph(subgraph: Subgraph, step: Step, weights: WeightCache) -> None:
    """Run the ops of a subgraph in order, each adding its value to the step."""
    for op in subgraph.ops:
        step.values[op.out] = FUNCTIONS[type(op)](op, step, weights)


class WeightCache:
    """Tensors as float32, dequantized once while half of the machine's memory holds them all."""

    def __init__(self, bundle: Bundle, budget_bytes: int | None = None) -> None:
        self._bundle = bundle
        self._left = memory_budget() if budget_bytes is None else budget_bytes
        self._kept: dict[str, Values] = {}

    def stored(self, name: str) -> StoredTensor:
        """The tensor as it is stored."""
        return self._bundle.tensor(name)

    def dense(self, name: str) -> Values:
        """The whole tensor in float32, in its own shape."""
        if name in self._kept:
            return self._kept[name]
        values = self._bundle.tensor(name).dequantized()
        if values.nbytes <= self._left:
            self._left -= values.nbytes
            self._kept[name] = values
        return values


def memory_budget(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Half of the available memory in bytes; 2 GiB where the system does not say."""
    try:
        lines = (line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        return int(dict(lines)["MemAvailable"].split()[0]) * 1024 // 2
    except (OSError, ValueError, LookupError):  # Android may forbid it, others spell it otherwise
        return 2 << 30


def embed(op: Embed, step: Step, weights: WeightCache) -> Values:
    rows = weights.stored(op.table).rows(step.tokens)
    return rows * np.float32(op.scale)


def norm(op: Norm, step: Step, weights: WeightCache) -> Values:
    x, weight = step.values[op.x], weights.dense(op.weight)
    runs = x.reshape(len(x), -1, len(weight))
    square = np.mean(runs * runs, axis=-1, keepdims=True)
    return (runs / np.sqrt(square + np.float32(op.eps)) * weight).reshape(x.shape)


def linear(op: Linear, step: Step, weights: WeightCache) -> Values:
    x, weight = step.values[op.x], weights.dense(op.weight)
    # One row goes through the matrix-vector product, 7 times as fast as the general one.
    product: Values = (weight @ x[0])[None] if len(x) == 1 else x @ weight.T
    return product if op.bias is None else product + weights.dense(op.bias)


def rope(op: Rope, step: Step, weights: WeightCache) -> Values:
    x, frequencies = step.values[op.x], weights.dense(op.frequencies)
    half = len(frequencies)
    angles = step.positions[:, None, None] * frequencies  # [rows, 1, half]
    cos, sin = np.cos(angles) * np.float32(op.scale), np.sin(angles) * np.float32(op.scale)
    heads = x.reshape(len(x), -1, op.head_dim)
    first, second, rest = np.split(heads, (half, 2 * half), axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin, rest)
    return np.concatenate(turned, axis=-1).reshape(x.shape)


def attention(op: Attention, step: Step, _weights: WeightCache) -> Values:
    append(op, step)
    return attend(op, step)


def append(op: Attention, step: Step) -> None:
    """Put the keys and values of the valid rows into the cache."""
    layer = step.cache.layers[op.cache]
    new = [
        step.values[name].reshape(-1, layer.kv_heads, layer.head_dim).transpose(1, 0, 2)
        for name in (op.key, op.value)
    ]
    step.cache.append(op.cache, *(values[:, : step.count] for values in new))


def attend(op: Attention, step: Step) -> Values:
    """Attention of the rows to what the cache holds up to them."""
    query = step.values[op.query]
    layer = step.cache.layers[op.cache]
    kv_heads, head_dim = layer.kv_heads, layer.head_dim
    keys, values = step.cache.filled(op.cache, step.count)  # [kv_heads, context, head_dim]
    grouped = query.reshape(len(query), kv_heads, -1, head_dim).transpose(1, 2, 0, 3)
    scores = grouped @ keys[:, None].transpose(0, 1, 3, 2) * np.float32(op.scale)
    if op.softcap is not None:
        scores = np.float32(op.softcap) * np.tanh(scores / np.float32(op.softcap))
    scores = np.where(visible(step, keys.shape[1], op.window), scores, np.float32(-np.inf))
    attended = softmax(scores) @ values[:, None]  # [kv_heads, group, rows, head_dim]
    return attended.transpose(2, 0, 1, 3).reshape(query.shape)


def visible(step: Step, context: int, window: int | None) -> NDArray[np.bool_]:
    """Which of `context` keys each row sees, [rows, context]: causal, and within the window.

    Rows of padding see what the last valid row sees, so that their softmax is defined.
    """
    last = step.cache.length + step.count - 1
    row = np.minimum(step.cache.length + np.arange(len(step.tokens)), last)[:, None]
    key = np.arange(context)
    seen = key <= row
    return seen if window is None else seen & (key > row - window)


def softmax(scores: Values) -> Values:
    """Softmax over the last axis."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    normed: Values = weights / weights.sum(axis=-1, keepdims=True)
    return normed


def gate(op: Gate, step: Step, _weights: WeightCache) -> Values:
    return GATES[op.function](step.values[op.gate]) * step.values[op.up]


def silu(x: Values) -> Values:
    # tanh saturates where exp(-x) would overflow
    return x * (np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + np.float32(1)))


def gelu_tanh(x: Values) -> Values:
    cubed: Values = np.float32(0.044715) * x * x * x
    inner = np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + cubed))
    product: Values = np.float32(0.5) * x * (np.float32(1) + inner)
    return product


def gelu(x: Values) -> Values:
    erf = np.vectorize(math.erf, otypes=[np.float32])
    product: Values = np.float32(0.5) * x * (np.float32(1) + erf(x * np.float32(math.sqrt(0.5))))
    return product


def relu(x: Values) -> Values:
    return np.maximum(x, np.float32(0))


def relu2(x: Values) -> Values:
    return np.square(relu(x))


GATES: dict[GateFunction, Callable[[Values], Values]] = {
    "silu": silu,
    "gelu_tanh": gelu_tanh,
    "gelu": gelu,
    "relu": relu,
    "relu2": relu2,
}


def add(op: Add, step: Step, _weights: WeightCache) -> Values:
    return step.values[op.a] + step.values[op.b]


def int8(op: Int8, step: Step, _weights: WeightCache) -> Values:
    x = step.values[op.x]
    largest = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(1e-5))
    scale = np.float32(127) / largest
    return np.clip(np.round(x * scale), -128, 127) / scale


def softcap(op: Softcap, step: Step, _weights: WeightCache) -> Values:
    return np.float32(op.cap) * np.tanh(step.values[op.x] / np.float32(op.cap))


def take(op: Take, step: Step, _weights: WeightCache) -> Values:
    return step.values[op.x][step.count - step.logit_rows : step.count]


FUNCTIONS: dict[type[Op], Callable[..., Values]] = {
    Embed: embed,
    Norm: norm,
    Linear: linear,
    Rope: rope,
    Attention: attention,
    Gate: gate,
    Add: add,
    Int8: int8,
    Softcap: softcap,
    Take: take,
}


class ReferenceBackend:
    """Runs every graph on every machine that has NumPy. See `edge.backend.Backend`."""

    def targets(self, machine: Machine, artifacts: Sequence[Artifact] = ()) -> list[Target]:
        del machine, artifacts
        return [Target("ref")]

    def leaves_out(
        self, asked: Target | None, machine: Machine, artifacts: Sequence[Artifact] = ()
    ) -> str:
        del asked, machine, artifacts
        return ""

    def refuses(self, target: Target, graph: Graph) -> str:
        del target, graph
        return ""

    def compile(self, formats: Iterable[Format], target: Target, folder: Path) -> list[Artifact]:
        del formats, folder
        raise UnknownTarget(f"target {target}: nothing to compile", "it runs every bundle as it is")

    def load(self, bundle: Bundle, target: Target, threads: int | None = None) -> ReferenceProgram:
        del target, threads  # NumPy's BLAS has threads of its own
        return ReferenceProgram(bundle)


BACKEND = ReferenceBackend()
