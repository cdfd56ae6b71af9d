"""A whole layer as the NPU is given it: its inputs and outputs, and what their codes mean.

A chunk of the residual stream goes in and out. Keys and values of the tokens before come in as
codes, [kv_heads, positions, head_dim], those of the chunk go out. What depends on the place in the
text comes in too: cosines and sines, and a mask over the positions and the chunk. So one graph
serves every place, and the same with a chunk of one token decodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edge.graph import Attention, Cache, Graph, Rope
from edge.npu import Activation, Codes, spanning
from edge.pieces import Piece
from edge.reference import Values
from npu.htp.nodes import End

PAST_KEYS, PAST_VALUES, MASK, COSINES, SINES = (
    "past.keys",
    "past.values",
    "mask",
    "cosines",
    "sines",
)

# How far below the least score that is seen those are put that are not: e^-16 is below a step of
# the softmax.
MARGIN = 16.0

# Codes of the mask, whatever its range: add nothing, or all of the range.
SEEN, UNSEEN = np.uint16(65535), np.uint16(0)


@dataclass(frozen=True)
class Layer:
    """A layer for chunks of `rows` tokens behind `positions` of others, at most."""

    piece: Piece
    graph: Graph
    rows: int
    positions: int

    @cached_property
    def attention(self) -> Attention:
        return next(op for op in self.piece.ops if isinstance(op, Attention))

    @property
    def cache(self) -> Cache:
        return self.graph.caches[self.attention.cache]

    @cached_property
    def rope(self) -> Rope | None:
        """The rotation of queries, which keys share; None where there is none."""
        return next((op for op in self.piece.ops if isinstance(op, Rope)), None)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Shapes [rows, width] of the graph's values."""
        return self.graph.resized(self.rows, 1).shapes()

    def inputs(self, activations: Mapping[str, Activation]) -> list[End]:
        """What the graph is given, in order."""
        stream = self.piece.inputs[0]
        past = self.cache.kv_heads, self.positions, self.cache.head_dim
        keys, values = (activations[name] for name in self.kept)
        ends = [
            End(stream, activations[stream], self.shapes[stream]),
            End(PAST_KEYS, keys, past),
            End(PAST_VALUES, values, past),
            End(MASK, self.masking(activations), (1, 1, self.rows, self.seen)),
        ]
        if self.rope is not None:
            table = self.rows, 1, self.rope.head_dim
            ends += [End(name, turning(self.rope, name), table) for name in (COSINES, SINES)]
        return ends

    def masking(self, activations: Mapping[str, Activation]) -> Activation:
        """The range of the mask: it takes the largest score to the least that can be held."""
        op = self.attention
        scores = activations[scores_of(op) if op.softcap is None else capped_of(op)]
        reach = float(activations[masked_of(op)].least) - float(scores.most)
        return spanning(MASK, 16, reach, 0.0)

    def outputs(self, activations: Mapping[str, Activation]) -> list[End]:
        """What the graph makes, in order: the stream, and the chunk's keys and values."""
        stream, width = self.piece.outputs[0], self.cache.kv_heads * self.cache.head_dim
        ends = [End(stream, activations[stream], self.shapes[stream])]
        return ends + [End(name, activations[name], (self.rows, width)) for name in self.kept]

    @property
    def kept(self) -> tuple[str, str]:
        """Keys and values as the cache has them, in signed codes."""
        return kept_of(self.attention.key), kept_of(self.attention.value)

    @property
    def seen(self) -> int:
        """Keys that a chunk's scores are of: those before it, and its own."""
        return self.positions + self.rows


def scores_of(op: Attention) -> str:
    """The name of scale * query key^T."""
    return f"{op.out}.scores"


def capped_of(op: Attention) -> str:
    """The name of scores after the softcap."""
    return f"{op.out}.capped"


def masked_of(op: Attention) -> str:
    """The name of scores with the mask."""
    return f"{op.out}.masked"


def kept_of(name: str) -> str:
    """The name of keys or values in signed codes.

    The HTP multiplies two activations of 16 bits only where one is signed, and makes only unsigned
    ones otherwise: so what is to be kept is converted.
    """
    return f"{name}.kept"


def turning(op: Rope, name: str) -> Activation:
    """How cosines or sines are quantized; their scale may take them beyond 1 (yarn)."""
    return spanning(name, 16, -op.scale, op.scale)


def rope_tables(op: Rope, frequencies: Values, positions: Values) -> tuple[Codes, Codes]:
    """Cosines and sines of positions as codes, [rows, 1, head_dim] each.

    A head turns as x * cosine + other * sine, where `other` has its two halves swapped; so the sine
    of the first half is negative, and what does not turn has a cosine of 1 and a sine of 0.
    """
    angles = positions[:, None] * frequencies
    cos, sin = (f(angles) * np.float32(op.scale) for f in (np.cos, np.sin))
    rest = len(positions), op.head_dim - 2 * len(frequencies)
    cosines = np.concatenate([cos, cos, np.ones(rest, np.float32)], axis=1)
    sines = np.concatenate([-sin, sin, np.zeros(rest, np.float32)], axis=1)
    activation = turning(op, "")
    return activation.encode(cosines[:, None]), activation.encode(sines[:, None])
