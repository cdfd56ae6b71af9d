"""A whole layer as an ONNX model of fixed shape: the NPU's second form.

All activations have 16 bits, since nothing is restored beside it: in 8 bits, residual sums and the
mask would lose too much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edge.graph import Add, Attention, Gate, Graph, Linear, Norm, Op, Rope
from edge.npu import Activation, spanning
from npu.htp.layer import (
    COSINES,
    MASK,
    PAST_KEYS,
    PAST_VALUES,
    SINES,
    Layer,
    capped_of,
    kept_of,
    masked_of,
    scores_of,
)
from npu.htp.lower import Lowering, Tensors, padded_width, unit
from npu.htp.nodes import Opset

# The first opset with RMSNormalization: as one op it holds outliers that its parts overflow on.
OPSET = Opset(23, 11)


def refuses(graph: Graph) -> str:
    """Why layers of a graph cannot be on the HTP whole; empty where they can."""
    for subgraph in graph.subgraphs:
        for op in subgraph.ops:
            if subgraph.layer is not None and type(op) not in _LOWERED:
                return f"{op.kind} {op.out} rounds each row by a scale of its own, the HTP does not"
    return ""


def turned_parts(op: Rope) -> tuple[str, str]:
    """Names of x * cosine, and of x with its halves swapped * sine."""
    return f"{op.out}.straight", f"{op.out}.swapped"


def scaled_of(op: Attention) -> str:
    """The name of scale * query."""
    return f"{op.query}.scaled"


def unbiased_of(op: Linear) -> str:
    """The name of x @ weight.T, where a bias is added at 4 bits: blocks take none."""
    return f"{op.out}.unbiased"


def lower_layer(layer: Layer, activations: Mapping[str, Activation], tensors: Tensors) -> bytes:
    """The ONNX model of a layer, as bytes. Raises MissingDependency without onnx."""
    return _LayerLowering(layer, activations, tensors).run()


class _LayerLowering(Lowering):
    """The nodes of a layer, op by op."""

    def __init__(
        self, layer: Layer, activations: Mapping[str, Activation], tensors: Tensors
    ) -> None:
        super().__init__(layer.piece, layer.rows, activations, tensors)
        self.layer = layer

    def run(self) -> bytes:
        inputs = self.layer.inputs(self.activations)
        for end in inputs:
            self.dequantize(end.name, end.activation)
        for op in self.piece.ops:
            _LOWERED[type(op)](self, op)
        outputs = self.layer.outputs(self.activations)
        return self.model(self.piece.name, inputs, outputs, OPSET)

    def made(
        self,
        kind: str,
        inputs: Sequence[str],
        out: str,
        activation: Activation | None = None,
        **attributes: Any,
    ) -> str:
        """An op on values and "/f" constants, its result rounded; returns the result's name."""
        self.node(kind, [f"{name}/f" for name in inputs], f"{out}/exact", **attributes)
        self.rounded(out, activation)
        return out

    def shaped(self, x: str, shape: Sequence[int], out: str, activation: Activation) -> str:
        """The same values in another shape."""
        self.constant(f"{out}/shape", np.asarray(shape, np.int64))
        self.node("Reshape", [f"{x}/f", f"{out}/shape"], f"{out}/exact")
        self.rounded(out, activation)
        return out

    def turned(self, x: str, order: Sequence[int], out: str, activation: Activation) -> str:
        """The same values with their dimensions in another order."""
        return self.made("Transpose", [x], out, activation, perm=list(order))

    def fixed(self, name: str, values: Any) -> str:
        """A constant of 16 bits."""
        values = np.atleast_1d(np.asarray(values, np.float32))
        activation = spanning(name, 16, float(values.min()), float(values.max()))
        self.constant(name, activation.encode(values))
        self.dequantize(name, activation)
        return name

    def heads(self, x: str, width: int) -> str:
        """A value as heads, [rows, heads, width]."""
        return self.shaped(x, (self.rows, -1, width), f"{x}.heads", self.activations[x])

    def norm(self, op: Norm) -> None:
        weight = self.fixed(f"weights/{op.weight}", self.tensors.vector(op.weight))
        width = len(self.tensors.vector(op.weight))
        whole = width == self.layer.shapes[op.x][1]
        x = op.x if whole else self.heads(op.x, width)
        out = op.out if whole else f"{op.out}.normed"
        made = self.activations[op.out]
        self.made("RMSNormalization", [x, weight], out, made, axis=-1, epsilon=op.eps)
        if not whole:
            self.shaped(out, self.layer.shapes[op.out], op.out, made)

    def linear(self, op: Linear) -> None:
        values = self.tensors.weights(op.weight)
        inputs = [f"{self.in_blocks(op.x)}/f", self.weight(f"weights/{op.weight}", values)]
        if op.bias is None:
            self.node("MatMul", inputs, f"{op.out}/exact")
            self.rounded(op.out)
            return
        bias, unbiased = self.tensors.vector(op.bias), unbiased_of(op)
        self.node("MatMul", inputs, f"{unbiased}/exact")
        self.rounded(unbiased)
        self.made("Add", [unbiased, self.fixed(f"weights/{op.bias}", bias)], op.out)

    def in_blocks(self, x: str) -> str:
        """A projection's input, with zeros behind it up to whole blocks."""
        width = self.layer.shapes[x][1]
        more, out = padded_width(width, self.tensors.bits) - width, f"{x}.padded"
        if more and f"{out}/pads" not in self.constants:
            self.constant(f"{out}/pads", np.asarray([0, 0, 0, more], np.int64))
            self.node("Pad", [f"{x}/f", f"{out}/pads"], f"{out}/exact")
            self.rounded(out, self.activations[x])
        return out if more else x

    def rope(self, op: Rope) -> None:
        half = len(self.tensors.vector(op.frequencies))
        given, made = self.activations[op.x], self.activations[op.out]
        heads = self.heads(op.x, op.head_dim)
        swapped = self.swapped(heads, half, op, given)
        straight, crossed = turned_parts(op)
        self.made("Mul", [heads, COSINES], straight)
        self.made("Mul", [swapped, SINES], crossed)
        total = self.made("Add", [straight, crossed], f"{op.out}.turned", made)
        self.shaped(total, self.layer.shapes[op.out], op.out, made)

    def swapped(self, heads: str, half: int, op: Rope, activation: Activation) -> str:
        """Heads with the halves of what turns swapped."""
        sizes = [half, half, *([op.head_dim - 2 * half] if op.head_dim > 2 * half else [])]
        names = [f"{op.out}.{part}" for part in ("first", "second", "rest")][: len(sizes)]
        self.constant(f"{op.out}/sizes", np.asarray(sizes, np.int64))
        outs = [f"{name}/exact" for name in names]
        self.nodes.append(
            self.onnx.helper.make_node(
                "Split",
                [f"{heads}/f", f"{op.out}/sizes"],
                outs,
                name=f"{op.out}.split",
                axis=-1,
            )
        )
        for name in names:
            self.rounded(name, activation)
        order = [names[1], names[0], *names[2:]]
        return self.made("Concat", order, f"{op.out}.other", activation, axis=-1)

    def attention(self, op: Attention) -> None:
        cache, acts = self.layer.cache, self.activations
        kv, width, rows = cache.kv_heads, cache.head_dim, self.rows
        scaled = scaled_of(op)
        self.made("Mul", [op.query, self.fixed(f"{scaled}/by", op.scale)], scaled)
        act = acts[scaled]
        query = self.shaped(scaled, (rows, kv, -1, width), f"{scaled}.heads", act)
        query = self.turned(query, (1, 2, 0, 3), f"{scaled}.grouped", act)
        query = self.shaped(query, (kv, -1, width), f"{scaled}.rows", act)
        keys, values = self.past(PAST_KEYS, op.key), self.past(PAST_VALUES, op.value)
        keys = self.turned(keys, (0, 2, 1), f"{op.key}.across", acts[kept_of(op.key)])
        scores = self.made("MatMul", [query, keys], scores_of(op))
        weights = self.weighed(scores, op)
        out = self.made("MatMul", [weights, values], f"{op.out}.rows", acts[op.out])
        out = self.shaped(out, (kv, -1, rows, width), f"{op.out}.grouped", acts[op.out])
        out = self.turned(out, (2, 0, 1, 3), f"{op.out}.heads", acts[op.out])
        self.shaped(out, self.layer.shapes[op.out], op.out, acts[op.out])

    def past(self, past: str, new: str) -> str:
        """Keys or values of the tokens before and of the chunk, [kv_heads, seen, head_dim]."""
        kept = kept_of(new)
        activation = self.activations[kept]
        self.node("QuantizeLinear", [f"{new}/f", *self.parameters(kept, activation)], kept)
        self.dequantize(kept, activation)
        heads = self.heads(kept, self.layer.cache.head_dim)
        heads = self.turned(heads, (1, 0, 2), f"{kept}.by_head", activation)
        return self.made("Concat", [past, heads], f"{kept}.all", activation, axis=1)

    def weighed(self, scores: str, op: Attention) -> str:
        """Softmax of masked scores, [kv_heads, group * rows, seen]."""
        if op.softcap is not None:
            scores = self.capped(scores, op, op.softcap)
        kv, seen = self.layer.cache.kv_heads, self.layer.seen
        grouped = (kv, -1, self.rows, seen)
        given = self.activations[scores]
        scores = self.shaped(scores, grouped, f"{scores}.grouped", given)
        masked = self.made("Add", [scores, MASK], masked_of(op))
        weights = f"{op.out}.weights"
        self.made("Softmax", [masked], weights, unit(16), axis=-1)
        return self.shaped(weights, (kv, -1, seen), f"{weights}.rows", unit(16))

    def capped(self, scores: str, op: Attention, cap: float) -> str:
        """cap * tanh(scores / cap)."""
        least, most = self.activations[scores].least / cap, self.activations[scores].most / cap
        inner, bent = f"{scores}.inner", f"{scores}.bent"
        share = self.fixed(f"{inner}/by", 1 / cap)
        self.made("Mul", [scores, share], inner, spanning(inner, 16, float(least), float(most)))
        self.made("Tanh", [inner], bent, spanning(bent, 16, -1.0, 1.0))
        return self.made("Mul", [bent, self.fixed(f"{bent}/by", cap)], capped_of(op))

    def add(self, op: Add) -> None:
        self.made("Add", [op.a, op.b], op.out)


_LOWERED: dict[type[Op], Callable[[_LayerLowering, Any], None]] = {
    Norm: _LayerLowering.norm,
    Linear: _LayerLowering.linear,
    Rope: _LayerLowering.rope,
    Attention: _LayerLowering.attention,
    Gate: _LayerLowering.gate,
    Add: _LayerLowering.add,
}
