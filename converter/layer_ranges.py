"""Static ranges of everything inside of a layer, for the form that is on the NPU whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from converter.calibrate import Tensors, Tokens, Walk
from converter.ranges import HEADROOM, between
from edge.graph import Attention, Gate, Graph, Linear, Op, Rope
from edge.npu import Activation, balanced, spanning
from edge.pieces import layer_pieces
from edge.reference import Values
from edge.watch import Watcher
from npu.htp.layer import MARGIN, capped_of, kept_of, masked_of, scores_of
from npu.htp.lower_layer import scaled_of, turned_parts, unbiased_of

Span = tuple[float, float]


def find_layer_ranges(
    graph: Graph, tensors: Tensors, samples: Sequence[Tokens], watcher: Watcher
) -> tuple[Activation, ...]:
    """Walk samples through the graph and choose 16-bit ranges of all that layers make.

    A little wider than what the samples had; keys and values with their zero in the middle.
    """
    layers = layer_pieces(graph)
    inside = {op.out for layer in layers for op in layer.ops}
    outside = {name for layer in layers for name in layer.inputs} - inside
    found: dict[str, Span] = {}
    watcher.start("calibration", sum(1 for _ in graph.ops()), "ops")
    walk, before = Walk(graph, tensors, samples), None
    for op in walk:
        if before is not None and before.out in inside | outside:
            found[before.out] = _span(walk.value(before.out))
            if isinstance(before, Linear) and before.bias is not None:
                bias = tensors.dense(before.bias)
                found[unbiased_of(before)] = _span(walk.value(before.out) - bias)
        if op.out in inside:
            found |= dict(_within(op, walk))
        before = op
        watcher.advance(1)
    made = [spanning(n, 16, HEADROOM * low, HEADROOM * high) for n, (low, high) in found.items()]
    for op in graph.ops():
        if isinstance(op, Attention):
            made += [_kept(name, found[name]) for name in (op.key, op.value)]
    return tuple(made)


def _kept(name: str, span: Span) -> Activation:
    low, high = span
    return balanced(kept_of(name), HEADROOM * low, HEADROOM * high)


def _within(op: Op, walk: Walk) -> Iterator[tuple[str, Span]]:
    """Ranges of what an op is computed by on the NPU, beside its result."""
    match op:
        case Gate():
            for name, function in between(op):
                yield name, _span(function(walk.value(op.gate)))
        case Rope():
            peak = float(np.abs(walk.value(op.x)).max()) * max(op.scale, 1.0)
            for name in turned_parts(op):
                yield name, (-peak, peak)
        case Attention():
            low, high = (op.scale * end for end in _span(walk.value(op.query)))
            yield scaled_of(op), (low, high)
            yield from _scores(op, walk)


def _scores(op: Attention, walk: Walk) -> Iterator[tuple[str, Span]]:
    width = walk.graph.caches[op.cache].head_dim
    parts = zip(walk.parts(op.query), walk.parts(op.key), strict=True)
    seen = np.concatenate([_visible(op, q, k, width) for q, k in parts])
    yield scores_of(op), _span(seen)
    if op.softcap is not None:
        seen = np.float32(op.softcap) * np.tanh(seen / np.float32(op.softcap))
        yield capped_of(op), _span(seen)
    low, high = _span(seen)
    yield masked_of(op), (min(low, 0.0) - MARGIN / HEADROOM, high)


def _visible(op: Attention, query: Values, key: Values, width: int) -> NDArray[np.float32]:
    """Scores of all queries with the keys that they see, in a row."""
    rows = len(query)
    place = np.arange(rows)
    seen = place <= place[:, None]
    if op.window is not None:
        seen &= place > place[:, None] - op.window
    keys = key.reshape(rows, -1, width)
    groups = query.reshape(rows, keys.shape[1], -1, width)
    scores = np.einsum("qkgw,tkw->kgqt", groups, keys) * np.float32(op.scale)
    made: NDArray[np.float32] = scores[..., seen].ravel()
    return made


def _span(values: NDArray[np.float32]) -> Span:
    return float(values.min()), float(values.max())
