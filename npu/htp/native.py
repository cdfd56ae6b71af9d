"""The CPU's part of a prefill by compiled kernels, one call an op. See `floats.Floats`.

Values are rows in whole tiles with a tile behind, which kernels may read and write past the width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cpu.kernels import activations, attention, codes, elementwise, embedding, linear, rows
from cpu.kernels.blocks import block_of
from cpu.kernels.kernel import Kernel, float_slot
from edge.backend import Kernels
from edge.bundle import Bundle
from edge.graph import Add, Attention, Embed, Gate, Int8, Linear, Norm, Op, Rope, Softcap, Take
from edge.npu import Activation, Codes
from edge.planes import STEP, TILE, StoredTensor, tile_count
from edge.reference import Step, Values
from npu.htp.floats import Made
from npu.htp.shadow import Columns, Extracted

# Values of a kernel's slots; an array stands for its address.
Slots = dict[str, int | NDArray[Any]]
_Item = TypeVar("_Item", np.int32, np.float32)


class NativeFloats:
    """See `floats.Floats`."""

    def __init__(self, bundle: Bundle, kernels: Kernels) -> None:
        self.place = str(kernels.target)
        self._bundle = bundle
        self._kernels = kernels
        self._kept: dict[str, Values] = {}
        self._angles: dict[str, Values] = {}

    def run(self, op: Op, step: Step) -> Values:
        return _RUN[type(op)](self, op, step)

    # Ops, as `cpu.lowering` has them.

    def embed(self, op: Embed, step: Step) -> Values:
        table = self._bundle.tensor(op.table)
        form, width = table.form, table.shape[1]
        tokens, out = np.ascontiguousarray(step.tokens, np.int32), empty(len(step.tokens), width)
        slots = (
            _weights(table)
            | _matrix("out", out)
            | {
                "tokens": tokens,
                "rows": len(out),
                "width": width,
                "groups": form.group_count(width) if form.quantized else 0,
                "steps": -(-width // STEP),
                "vocabulary": table.shape[0],
                "scale": float_slot(op.scale),
            }
        )
        self._call(embedding.embedding_kernel(form), slots)
        return out

    def norm(self, op: Norm, step: Step) -> Values:
        weight = self._bundle.tensor(op.weight)
        extra: Slots = {
            "weight": self._vector(op.weight),
            "size": weight.shape[0],
            "eps": float_slot(op.eps),
        }
        return self._rows(rows.norm_kernel(), step.values[op.x], extra)

    def rope(self, op: Rope, step: Step) -> Values:
        half = self._bundle.tensor(op.frequencies).shape[0]
        cos, sin = (self._turns(op, name, step.cache.capacity) for name in ("cos", "sin"))
        extra: Slots = {
            "cos": cos,
            "sin": sin,
            "head_dim": op.head_dim,
            "half": half,
            "position": step.cache.length,
            "table_stride": 4 * half,
        }
        return self._rows(rows.rope_kernel(), step.values[op.x], extra)

    def int8(self, op: Int8, step: Step) -> Values:
        return self._rows(rows.int8_kernel(), step.values[op.x], {})

    def gate(self, op: Gate, step: Step) -> Values:
        kernel = elementwise.gate_kernel(op.function)
        return self._elementwise(kernel, step.values[op.gate], step.values[op.up])

    def add(self, op: Add, step: Step) -> Values:
        return self._elementwise(elementwise.add_kernel(), step.values[op.a], step.values[op.b])

    def softcap(self, op: Softcap, step: Step) -> Values:
        x, kernel = step.values[op.x], elementwise.softcap_kernel()
        return self._elementwise(kernel, x, x, float_slot(op.cap))

    def take(self, op: Take, step: Step) -> Values:
        return step.values[op.x][step.count - step.logit_rows : step.count]

    def linear(self, op: Linear, step: Step) -> Values:
        """A projection that is no NPU's: the head."""
        weight = self._bundle.tensor(op.weight)
        form, (outputs, width) = weight.form, weight.shape
        x, out = padded(step.values[op.x]), empty(len(step.values[op.x]), outputs)
        slots = _matrix("out", out) | {
            "bias": self._bias(op.bias, outputs),
            "rows": len(x),
            "width": width,
            "tiles": tile_count(outputs),
            "outputs": outputs,
        }
        if not form.quantized:
            slots |= _matrix("x", x) | {"values": weight.parts["values"]}
            self._call(linear.float_linear_kernel(form), slots)
            return out
        layout = activations.RowLayout(width, block_of(form))
        slots |= {
            "x": self._quantized(x, layout),
            "x_stride": layout.byte_count,
            "x_private": 0,
            "padded": layout.padded,
            "row_scales": layout.scales,
            "row_sums": layout.sums,
        }
        self._call(linear.linear_kernel(form), slots | _weights(weight))
        return out

    def _quantized(self, x: Values, layout: activations.RowLayout) -> NDArray[np.uint8]:
        out = np.empty(layout.byte_count * len(x) + TILE, np.uint8)
        slots = _matrix("x", x) | {
            "out": out,
            "rows": len(x),
            "width": layout.width,
            "out_stride": layout.byte_count,
            "private": 0,
            "padded": layout.padded,
            "scales": layout.scales,
            "sums": layout.sums,
            "one_scale": 0,
        }
        self._call(activations.quantize_kernel(layout.block), slots)
        return out

    # Attention.

    def append(self, op: Attention, step: Step) -> None:
        self._call(attention.append_kernel(step.cache.form), self._cache(op, step))

    def attend(self, op: Attention, step: Step) -> Values:
        """The kernel puts keys and values into the cache once more, the same ones."""
        cache = self._bundle.graph.caches[op.cache]
        query = padded(step.values[op.query])
        heads = attention.head_slots(op, cache, query.shape[1])
        scratch = np.empty(heads["scratch_stride"] * self._kernels.threads, np.uint8)
        out = empty(*query.shape)
        slots = self._cache(op, step) | _matrix("query", query) | _matrix("out", out)
        slots |= heads | {"scratch": scratch}
        self._call(attention.attention_kernel(step.cache.form), slots)
        return out

    def _cache(self, op: Attention, step: Step) -> Slots:
        """The cache of a layer, and what is put there."""
        cache, (key, value) = step.cache, (padded(step.values[name]) for name in (op.key, op.value))
        return (
            _matrix("key", key)
            | _matrix("value", value)
            | {
                "keys": cache.keys[op.cache],
                "values": cache.values[op.cache],
                "rows": len(key),
                "position": cache.length,
                "kv_heads": cache.layers[op.cache].kv_heads,
                "head_dim": cache.layers[op.cache].head_dim,
                "capacity": cache.capacity,
            }
        )

    # To and from the NPU.

    def split(
        self, activation: Activation, x: Values, factors: Values | None
    ) -> tuple[Codes, Extracted]:
        x = padded(x if factors is None else x / factors)
        made = np.empty(x.shape, np.uint8 if activation.bits == 8 else np.uint16)
        channels, cuts = np.empty(x.shape, np.int32), np.empty(x.shape, np.float32)
        counts = np.empty(len(x), np.int64)
        slots = _matrix("x", x) | _matrix("codes", made)
        slots |= {
            "channels": channels,
            "cuts": cuts,
            "counts": counts,
            "rows": len(x),
            "width": x.shape[1],
            "scale": float_slot(activation.scale),
            "zero": float_slot(activation.zero),
            "least": float_slot(float(activation.least)),
            "most": float_slot(float(activation.most)),
            "levels": float_slot((1 << activation.bits) - 1),
        }
        self._call(codes.encode_kernel(activation.bits), slots)
        if not activation.restored:
            counts[:] = 0
        found_channels, cut = _heads(channels, counts), _heads(cuts, counts)
        if factors is not None:
            cut = cut * factors[found_channels]
        found_rows = np.repeat(np.arange(len(x)), counts)
        return made, Extracted(found_rows, found_channels.astype(np.intp), cut)

    def join(self, made: Made) -> Values:
        width, added = made.codes.shape[1], made.added
        out = empty(*made.codes.shape)
        slots = _matrix("codes", made.codes) | _matrix("out", out)
        slots |= {
            "factors": self._filled(1, width) if made.factors is None else made.factors,
            "bias": self._bias(made.bias, width),
            "added": self._filled(0, width) if added is None else added,
            "added_stride": 0 if added is None else added.strides[0],
            "rows": len(out),
            "width": width,
            "scale": float_slot(made.activation.scale),
            "zero": float_slot(made.activation.zero),
        }
        self._call(codes.decode_kernel(made.activation.bits), slots)
        return out

    def products(self, found: Extracted, columns: Columns, rows: int) -> Values:
        out = empty(rows, columns.values.shape[1])
        starts = np.searchsorted(found.rows, np.arange(rows + 1)).astype(np.int64)
        places = columns.places[found.used[1]].astype(np.int64)
        slots = _matrix("column", columns.values) | _matrix("out", out)
        slots |= {
            "columns": columns.values,
            "starts": starts,
            "places": places,
            "cuts": found.cut,
            "rows": rows,
            "tiles": tile_count(out.shape[1]),
        }
        self._call(codes.add_columns_kernel(), slots)
        return out

    # Calls and what they are given.

    def _call(self, kernel: Kernel, slots: Slots) -> None:
        values = (slots[name] for name in kernel.slots)
        self._kernels.run(kernel.name, [v if isinstance(v, int) else v.ctypes.data for v in values])

    def _rows(self, kernel: Kernel, x: Values, extra: Slots) -> Values:
        """A kernel of whole rows."""
        x, out = padded(x), empty(*x.shape)
        slots = _matrix("x", x) | _matrix("out", out)
        slots |= {"rows": len(x), "width": x.shape[1], "private": 0}
        self._call(kernel, slots | extra)
        return out

    def _elementwise(self, kernel: Kernel, a: Values, b: Values, number: int = 0) -> Values:
        a, b, out = padded(a), padded(b), empty(*a.shape)
        slots = _matrix("a", a) | _matrix("b", b) | _matrix("out", out)
        slots |= {"rows": len(a), "tiles": tile_count(a.shape[1]), "number": number}
        self._call(kernel, slots)
        return out

    def _vector(self, name: str) -> Values:
        """A tensor of one axis, with zeros behind it."""
        return self._keep(name, self._bundle.tensor(name).parts["values"])

    def _bias(self, name: str | None, width: int) -> Values:
        """A bias, or zeros where there is none."""
        return self._filled(0, width) if name is None else self._vector(name)

    def _filled(self, number: int, width: int) -> Values:
        return self._keep(f"{number}/{width}", np.full(width, number, np.float32))

    def _keep(self, name: str, values: Values) -> Values:
        if name not in self._kept:
            self._kept[name] = np.pad(values.astype(np.float32), (0, TILE))
        return self._kept[name]

    def _turns(self, op: Rope, name: str, positions: int) -> Values:
        """Cosines or sines of positions' angles, [positions, half], for at least so many."""
        key = f"{name}/{op.frequencies}/{op.scale}"
        if key not in self._angles or len(self._angles[key]) < positions:
            frequencies = self._bundle.tensor(op.frequencies).parts["values"]
            angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies
            function = np.cos if name == "cos" else np.sin
            self._angles[key] = function(angles) * np.float32(op.scale)
        return self._angles[key]


def empty(rows: int, width: int) -> Values:
    """Rows in whole tiles with a tile behind."""
    return np.empty((rows, _stride(width)), np.float32)[:, :width]


def padded(x: Values) -> Values:
    """The value in such rows: as it is, or copied."""
    if x.strides == (4 * _stride(x.shape[1]), 4):
        return x
    made = empty(*x.shape)
    made[:] = x
    return made


def _stride(width: int) -> int:
    return (tile_count(width) + 1) * TILE


def _heads(lists: NDArray[_Item], counts: NDArray[np.int64]) -> NDArray[_Item]:
    """The first `counts` of each row, one behind the other."""
    parts = [row[:count] for row, count in zip(lists, counts.tolist(), strict=True) if count]
    return np.concatenate(parts) if parts else lists[0, :0]


def _matrix(name: str, rows: NDArray[Any]) -> Slots:
    """The slots of a matrix that all threads share."""
    return {name: rows, f"{name}_stride": rows.strides[0], f"{name}_private": 0}


def _weights(tensor: StoredTensor) -> Slots:
    """Addresses of a tensor's parts in the mapped file; 0 where it has none."""
    parts = tensor.parts
    first = next(name for name in ("planes", "codes", "values") if name in parts)
    named = {"codes": first, "scales": "scales", "zeros": "zeros"}
    return {slot: parts.get(n, 0) for slot, n in named.items()}


_RUN: dict[type[Op], Callable[..., Values]] = {
    Embed: NativeFloats.embed,
    Norm: NativeFloats.norm,
    Rope: NativeFloats.rope,
    Int8: NativeFloats.int8,
    Gate: NativeFloats.gate,
    Add: NativeFloats.add,
    Softcap: NativeFloats.softcap,
    Linear: NativeFloats.linear,
    Take: NativeFloats.take,
}
