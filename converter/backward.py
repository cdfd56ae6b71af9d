"""Gradients of a model's weights: the ops of the reference interpreter run backwards, in NumPy.

For models that fit in memory with all values of a batch. Every function here is the transpose of
the one of the same name in `edge.reference`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converter.calibrate import Tensors, Tokens
from edge import graph as ops
from edge.graph import GateFunction, Graph, Op
from edge.kvcache import KVCache
from edge.reference import FUNCTIONS, Step, Values, softmax


@dataclass
class _Batch(Step):
    """A step of several sequences of one length, one after another, each from position 0."""

    length: int = 0

    @property
    def positions(self) -> NDArray[np.float32]:
        own = np.arange(self.length, dtype=np.float32)
        return np.tile(own, len(self.tokens) // self.length)


class Tape:
    """A batch on its way through a graph, forwards and then backwards."""

    def __init__(self, graph: Graph, tensors: Tensors) -> None:
        self.graph = graph
        self.tensors = tensors
        self.shares: dict[str, Values] = {}  # of attention, [sequences, kv, group, length, length]
        self.gradients: dict[str, Values] = {}  # by tensor
        self._values: dict[str, Values] = {}  # gradients by value

    def forward(self, tokens: Tokens) -> Values:
        """Logits [sequences * length, vocabulary] of tokens [sequences, length]."""
        flat = tokens.reshape(-1)
        self.step = _Batch(flat, len(flat), len(flat), KVCache((), 1), {}, tokens.shape[1])
        for op in self.graph.ops():
            function: Callable[..., Values] = FUNCTIONS[type(op)]
            if isinstance(op, ops.Attention):
                self.step.values[op.out] = self._attend(op)
            else:
                self.step.values[op.out] = function(op, self.step, self.tensors)
        return self.step.values[self.graph.last.out]

    def backward(self, gradient: Values) -> dict[str, Values]:
        """Gradients of all tensors, from that of the logits. Ends the tape."""
        self._values[self.graph.last.out] = gradient
        for op in reversed(list(self.graph.ops())):
            function: Callable[..., None] = GRADIENTS[type(op)]
            function(op, self, self._values.pop(op.out))
        return self.gradients

    def value(self, name: str) -> Values:
        """What the forward run made."""
        return self.step.values[name]

    def add(self, name: str, gradient: Values) -> None:
        """ops.Add to a value's gradient."""
        held = self._values.get(name)
        self._values[name] = gradient if held is None else held + gradient

    def add_weight(self, name: str, gradient: Values) -> None:
        """ops.Add to a tensor's gradient."""
        held = self.gradients.get(name)
        self.gradients[name] = gradient if held is None else held + gradient

    def heads(self, op: ops.Attention, name: str) -> Values:
        """A value of attention as [sequences, kv, group, length, head_dim]."""
        return self.split(op, self.value(name))

    def split(self, op: ops.Attention, values: Values) -> Values:
        """Rows as heads."""
        cache, length = self.graph.caches[op.cache], self.step.length
        shape = (-1, length, cache.kv_heads, values.shape[1] // cache.kv_heads // cache.head_dim)
        return values.reshape(*shape, cache.head_dim).transpose(0, 2, 3, 1, 4)

    def scores(self, op: ops.Attention) -> Values:
        """Scores before the mask, capped."""
        scores: Values = self.heads(op, op.query) @ self.heads(op, op.key).swapaxes(-1, -2)
        scores *= np.float32(op.scale)
        if op.softcap is not None:
            scores = np.float32(op.softcap) * np.tanh(scores / np.float32(op.softcap))
        return scores

    def _attend(self, op: ops.Attention) -> Values:
        row, key = np.ogrid[: self.step.length, : self.step.length]
        seen = key <= row if op.window is None else (key <= row) & (key > row - op.window)
        shares = softmax(np.where(seen, self.scores(op), np.float32(-np.inf)))
        self.shares[op.out] = shares
        return merge(shares @ self.heads(op, op.value))


def merge(heads: Values) -> Values:
    """Heads [sequences, kv, group, length, head_dim] as rows."""
    moved = heads.transpose(0, 3, 1, 2, 4)
    return moved.reshape(moved.shape[0] * moved.shape[1], -1)


def embed(op: ops.Embed, tape: Tape, gradient: Values) -> None:
    table = np.zeros_like(tape.tensors.dense(op.table))
    np.add.at(table, tape.step.tokens, gradient * np.float32(op.scale))
    tape.add_weight(op.table, table)


def norm(op: ops.Norm, tape: Tape, gradient: Values) -> None:
    x, weight = tape.value(op.x), tape.tensors.dense(op.weight)
    runs = x.reshape(len(x), -1, len(weight))
    gradient = gradient.reshape(runs.shape)
    root = 1 / np.sqrt(np.mean(runs * runs, axis=-1, keepdims=True) + np.float32(op.eps))
    normed = runs * root
    tape.add_weight(op.weight, (gradient * normed).sum(axis=(0, 1)))
    gradient = gradient * weight
    along = np.mean(gradient * normed, axis=-1, keepdims=True)
    tape.add(op.x, (root * (gradient - normed * along)).reshape(x.shape))


def linear(op: ops.Linear, tape: Tape, gradient: Values) -> None:
    tape.add(op.x, gradient @ tape.tensors.dense(op.weight))
    tape.add_weight(op.weight, gradient.T @ tape.value(op.x))
    if op.bias is not None:
        tape.add_weight(op.bias, gradient.sum(axis=0))


def rope(op: ops.Rope, tape: Tape, gradient: Values) -> None:
    frequencies = tape.tensors.dense(op.frequencies)
    half, scale = len(frequencies), np.float32(op.scale)
    angles = tape.step.positions[:, None, None] * frequencies
    cos, sin = np.cos(angles) * scale, np.sin(angles) * scale
    heads = gradient.reshape(len(gradient), -1, op.head_dim)
    first, second, rest = np.split(heads, (half, 2 * half), axis=-1)
    turned = (first * cos + second * sin, second * cos - first * sin, rest)
    tape.add(op.x, np.concatenate(turned, axis=-1).reshape(gradient.shape))


def attention(op: ops.Attention, tape: Tape, gradient: Values) -> None:
    shares, out = tape.shares[op.out], tape.split(op, gradient)
    value = shares.swapaxes(-1, -2) @ out
    inner = out @ tape.heads(op, op.value).swapaxes(-1, -2)
    scores = shares * (inner - (shares * inner).sum(axis=-1, keepdims=True))
    if op.softcap is not None:
        scores *= 1 - np.square(tape.scores(op) / np.float32(op.softcap))
    scores *= np.float32(op.scale)
    key = scores.swapaxes(-1, -2) @ tape.heads(op, op.query)
    tape.add(op.query, merge(scores @ tape.heads(op, op.key)))
    tape.add(op.key, merge(key.sum(axis=2, keepdims=True)))  # heads of a group share theirs
    tape.add(op.value, merge(value.sum(axis=2, keepdims=True)))


def gate(op: ops.Gate, tape: Tape, gradient: Values) -> None:
    inner, up = tape.value(op.gate), tape.value(op.up)
    function, slope = SLOPES[op.function](inner)
    tape.add(op.gate, gradient * up * slope)
    tape.add(op.up, gradient * function)


def silu(x: Values) -> tuple[Values, Values]:
    share = np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + 1)
    return x * share, share * (1 + x * (1 - share))


def gelu_tanh(x: Values) -> tuple[Values, Values]:
    root, cubic = np.float32(math.sqrt(2 / math.pi)), np.float32(0.044715)
    bent = np.tanh(root * (x + cubic * x * x * x))
    half = np.float32(0.5)
    slope = half * (1 + bent) + half * x * (1 - bent * bent) * root * (1 + 3 * cubic * x * x)
    return half * x * (1 + bent), slope


def gelu(x: Values) -> tuple[Values, Values]:
    erf = np.vectorize(math.erf, otypes=[np.float32])
    below = np.float32(0.5) * (1 + erf(x * np.float32(math.sqrt(0.5))))
    bell = np.exp(-x * x / 2) * np.float32(1 / math.sqrt(2 * math.pi))
    return x * below, below + x * bell


def relu(x: Values) -> tuple[Values, Values]:
    above = np.maximum(x, np.float32(0))
    return above, (x > 0).astype(np.float32)


def relu2(x: Values) -> tuple[Values, Values]:
    above = np.maximum(x, np.float32(0))
    return above * above, 2 * above


# A gate's function of x, and its derivative.
SLOPES: dict[GateFunction, Callable[[Values], tuple[Values, Values]]] = {
    "silu": silu,
    "gelu_tanh": gelu_tanh,
    "gelu": gelu,
    "relu": relu,
    "relu2": relu2,
}


def add(op: ops.Add, tape: Tape, gradient: Values) -> None:
    tape.add(op.a, gradient)
    tape.add(op.b, gradient)


def softcap(op: ops.Softcap, tape: Tape, gradient: Values) -> None:
    capped = tape.value(op.out) / np.float32(op.cap)
    tape.add(op.x, gradient * (1 - capped * capped))


def same(op: ops.Take | ops.Int8, tape: Tape, gradient: Values) -> None:
    """All rows are taken; a rounding is passed by, as models are trained that have it."""
    tape.add(op.x, gradient)


GRADIENTS: dict[type[Op], Callable[..., None]] = {
    ops.Embed: embed,
    ops.Norm: norm,
    ops.Linear: linear,
    ops.Rope: rope,
    ops.Attention: attention,
    ops.Gate: gate,
    ops.Add: add,
    ops.Int8: same,
    ops.Softcap: softcap,
    ops.Take: same,
}
