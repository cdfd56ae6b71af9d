"""Static ranges of the NPU's activations, from samples: what is inside, and what is an outlier.

llm.npu, section 3.3. An input of projections in 8 bits has a threshold; what is over it is clipped
on the NPU and restored by the CPU, or, in layers whose outliers are pruned, kept inside by a
coarser scale. Values of 16 bits have room for outliers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from converter.calibrate import Tensors, Tokens, Walk
from edge.graph import Gate, Graph, Linear, Op
from edge.npu import Activation, Mode, Outliers, spanning
from edge.pieces import static_pieces
from edge.reference import GATES, relu
from edge.watch import Watcher

Floats = NDArray[np.float32]

# Shares of a tensor that may be outliers. A threshold is lowered to the next one where that makes
# the scale finer by more than a factor of e for each percent more: a channel that is far out goes
# to the CPU, the tail of a normal distribution does not.
SHARES = (0.0, 0.0001, 0.0003, 0.001, 0.003, 0.005, 0.01, 0.02, 0.03)
PRICE = 100.0

# The share of a tensor's outliers that its hot channels have (llm.npu, section 3.3).
HOT_SHARE = 0.8

# How far 16-bit ranges reach beyond what calibration saw. It costs a third of a bit.
HEADROOM = 1.25

# The same for outputs of 8 bits, whose channels have ranges of their own; and the least range of a
# channel, as a share of the largest.
OUTPUT_HEADROOM = 1.1
LEAST_REACH = 0.2


@dataclass(frozen=True)
class Choices:
    """How ranges are chosen: the mode, the share of layers whose outliers are not restored, and
    SmoothQuant's alpha (arXiv 2211.10438), 0 for none."""

    mode: Mode
    pruned: float = 0.0
    smoothing: float = 0.0

    @property
    def bits(self) -> int:
        """Bits of an activation."""
        return 8 if self.mode == "w8a8" else 16


@dataclass(frozen=True)
class Ranges:
    """What calibration finds. `factors` are what channels of scaled values are divided by."""

    activations: tuple[Activation, ...]
    float_gates: tuple[str, ...]
    layer_importance: tuple[float, ...]
    factors: Mapping[str, Floats]


@dataclass
class _Input:
    """A value that projections read, before it is known whether its outliers are restored."""

    layer: int
    low: float
    high: float
    outliers: Outliers
    factors: Floats | None

    @property
    def clipped(self) -> tuple[float, float]:
        threshold = self.outliers.threshold
        return max(self.low, -threshold), min(self.high, threshold)


@dataclass
class _Found:
    """What one walk over the samples finds."""

    inputs: dict[str, _Input] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)  # of exact values
    plain: dict[str, Floats] = field(default_factory=dict)  # of W x: low and high, [2, channels]
    clipped: dict[str, Floats] = field(default_factory=dict)  # of W clip(x), the same


def find_ranges(
    graph: Graph,
    tensors: Tensors,
    samples: Sequence[Tokens],
    choices: Choices,
    watcher: Watcher,
) -> Ranges:
    """Walk samples through the graph and choose the ranges of all values that the NPU sees."""
    found = _walk(graph, tensors, samples, choices, watcher)
    importance = _layer_importance(found)
    kept = _restored_layers(importance, choices)
    gates = _float_gates(graph, kept, choices.mode)
    factors = {n: v.factors for n, v in found.inputs.items() if v.factors is not None}
    made = tuple(_choose(graph, found, choices, kept, gates, factors))
    return Ranges(made, gates, importance, factors)


def _walk(
    graph: Graph,
    tensors: Tensors,
    samples: Sequence[Tokens],
    choices: Choices,
    watcher: Watcher,
) -> _Found:
    layers = {op.out: s.layer for s in graph.subgraphs for op in s.ops}
    inside = {op.out for piece in static_pieces(graph) for op in piece.ops}
    readers: dict[str, list[Linear]] = {}
    for op in graph.ops():
        if isinstance(op, Linear) and op.out in inside:
            readers.setdefault(op.x, []).append(op)
    found = _Found()
    walk = Walk(graph, tensors, samples)
    watcher.start("calibration", sum(1 for _ in graph.ops()), "ops")
    before: Op | None = None
    for op in walk:
        if before is not None and before.out in inside:
            values = walk.value(before.out)
            found.ranges[before.out] = _span(values)
            if isinstance(before, Linear):
                bias = 0 if before.bias is None else tensors.dense(before.bias)
                found.plain[before.out] = _spans(values - bias)
        if isinstance(op, Linear) and op.out in inside:
            x = walk.value(op.x)
            if op.x not in found.inputs:
                layer = layers[op.out]
                assert layer is not None
                found.inputs[op.x] = _look(x, layer, readers[op.x], tensors, choices)
            found.clipped[op.out] = _spans(_clipped_product(op, x, found.inputs[op.x], tensors))
        elif isinstance(op, Gate):
            for name, function in between(op):
                found.ranges[name] = _span(function(walk.value(op.gate)))
        before = op
        watcher.advance(1)
    return found


def between(op: Gate) -> Iterator[tuple[str, Callable[[Floats], Floats]]]:
    """Values between a gate's input and its output, as the NPU computes it in steps."""
    yield f"{op.out}.act", GATES[op.function]
    if op.function == "relu2":
        yield f"{op.out}.relu", relu


def _look(
    x: Floats, layer: int, readers: Sequence[Linear], tensors: Tensors, choices: Choices
) -> _Input:
    factors = None
    if choices.smoothing:
        factors = _smoothing(x, [tensors.dense(op.weight) for op in readers], choices.smoothing)
        x = x / factors
    low, high = _span(x)
    return _Input(layer, low, high, find_outliers(x), factors)


def find_outliers(x: Floats) -> Outliers:
    """Choose a threshold for values [tokens, channels], and describe what is over it."""
    magnitudes = np.abs(x)
    threshold = choose_threshold(magnitudes)
    over = magnitudes > np.float32(threshold)
    counts = over.sum(axis=0)
    order = np.argsort(-counts, kind="stable")
    total = int(counts.sum())
    hot = int(np.searchsorted(np.cumsum(counts[order]), HOT_SHARE * total) + 1) if total else 0
    return Outliers(
        threshold=threshold,
        share=total / x.size,
        channels=int((counts > 0).sum()),
        hot_channels=tuple(sorted(int(channel) for channel in order[:hot])),
        importance=float(magnitudes.max() / threshold) if threshold else 1.0,
        restored=False,
    )


def choose_threshold(magnitudes: Floats) -> float:
    """The magnitude over which values are outliers: the scale weighed against the CPU's work."""
    ordered = np.sort(magnitudes, axis=None)
    best, least = float(ordered[-1]), math.inf
    for share in SHARES:
        value = float(ordered[math.ceil((1 - share) * len(ordered)) - 1])
        cost = PRICE * share + (math.log(value) if value > 0 else math.inf)
        if cost < least:
            best, least = value, cost
    return best


def _smoothing(x: Floats, weights: Sequence[Floats], alpha: float) -> Floats:
    """Factors that move scale from channels of x to the weights that read them."""
    largest = np.maximum(np.abs(x).max(axis=0), np.float32(1e-5))
    columns = np.maximum(np.max([np.abs(w).max(axis=0) for w in weights], axis=0), 1e-5)
    factors: Floats = (largest**alpha / columns ** (1 - alpha)).astype(np.float32)
    return factors / np.exp(np.log(factors).mean(), dtype=np.float32)


def _clipped_product(op: Linear, x: Floats, entry: _Input, tensors: Tensors) -> Floats:
    factors = np.float32(1) if entry.factors is None else entry.factors
    low, high = entry.clipped
    inside = np.clip(x / factors, np.float32(low), np.float32(high)) * factors
    product: Floats = inside @ tensors.dense(op.weight).T
    return product


def _span(values: Floats) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _spans(values: Floats) -> Floats:
    """The ends of every channel, [2, channels]."""
    return np.stack([values.min(axis=0), values.max(axis=0)])


def _layer_importance(found: _Found) -> tuple[float, ...]:
    layers: dict[int, float] = {}
    for entry in found.inputs.values():
        importance = entry.outliers.importance
        layers[entry.layer] = max(layers.get(entry.layer, 1.0), importance)
    return tuple(layers[layer] for layer in sorted(layers))


def _restored_layers(importance: Sequence[float], choices: Choices) -> set[int]:
    """Layers whose outliers are restored: all but the pruned share, the least important first."""
    if choices.mode != "w8a8":
        return set()
    order = sorted(range(len(importance)), key=lambda layer: importance[layer])
    return set(order[round(choices.pruned * len(importance)) :])


def _float_gates(graph: Graph, kept: set[int], mode: Mode) -> tuple[str, ...]:
    """Gates that the CPU computes: those behind restored outliers, which must be back before.

    With 4-bit weights, those behind biases too: the NPU adds no bias to blocks.
    """
    gates = []
    for subgraph in graph.subgraphs:
        biased = any(isinstance(op, Linear) and op.bias is not None for op in subgraph.ops)
        apart = subgraph.layer in kept or (mode == "w4a16" and biased)
        gates += [op.out for op in subgraph.ops if isinstance(op, Gate) and apart]
    return tuple(gates)


def _choose(
    graph: Graph,
    found: _Found,
    choices: Choices,
    kept: set[int],
    gates: Sequence[str],
    factors: dict[str, Floats],
) -> Iterator[Activation]:
    """All activations. Adds to `factors` those of outputs."""
    margin = HEADROOM if choices.bits == 16 else 1.0
    for name, entry in found.inputs.items():
        restored = entry.layer in kept
        low, high = entry.clipped if restored else (margin * entry.low, margin * entry.high)
        yield replace(
            spanning(name, choices.bits, low, high),
            low=entry.low,
            high=entry.high,
            scaled=entry.factors is not None,
            outliers=replace(entry.outliers, restored=restored),
        )
    for piece in static_pieces(graph, gates):
        for op in piece.ops:
            if isinstance(op, Linear) and op.out in piece.outputs:
                restored = found.inputs[op.x].layer in kept
                spans = (found.clipped if restored else found.plain)[op.out]
                yield _output(op.out, spans, choices.bits, factors)
            elif op.out not in found.inputs:
                yield _inner(op.out, found, choices.bits, margin)
            if isinstance(op, Gate):
                for name, _ in between(op):
                    yield _inner(name, found, choices.bits, margin)


def _inner(name: str, found: _Found, bits: int, margin: float) -> Activation:
    low, high = found.ranges[name]
    return spanning(name, bits, margin * low, margin * high)


def _output(name: str, spans: Floats, bits: int, factors: dict[str, Floats]) -> Activation:
    """An output's range. In 8 bits, every channel is divided so that it uses the whole range.

    The CPU multiplies by the factor when it takes the output: nothing is left to do for the NPU.
    """
    if bits == 8:
        reach = np.abs(spans).max(axis=0)
        reach = np.maximum(reach, np.float32(LEAST_REACH) * reach.max())
        factors[name] = (reach / max(reach.max(), 1e-12)).astype(np.float32)
        factors[name][factors[name] == 0] = 1
        spans = spans / factors[name]
    margin = np.float32(HEADROOM if bits == 16 else OUTPUT_HEADROOM)
    made = spanning(name, bits, *_span(margin * spans))
    return replace(made, scaled=bits == 8)
