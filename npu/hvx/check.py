"""A bundle's decode step on an emulated Hexagon, op by op, each beside its plain twin.

Every op gets what the device itself made before it, so an error is told of the op that made it.
Lookup products are compared as integers, bit for bit; the rest, which is float, with the reference.
Tiles for a matrix unit, which no step takes, are made of every matrix and compared bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpu.kernels import argmax
from edge.bundle import Bundle
from edge.check import Check, compare
from edge.graph import Linear, Op, Take
from edge.kvcache import KVCache
from edge.planes import TILE, StoredTensor, tile_count
from edge.reference import FUNCTIONS, Step, WeightCache
from edge.target import Target
from npu.hvx import dequantize, gemv, tables
from npu.hvx.lowering import Call
from npu.hvx.program import Calls, HvxProgram, emulated
from npu.hvx.weights import RowScales, group_of, row_scales

# Positions that the cache holds before the step: attention looks back, rotations turn.
PAST = 5

# Float kernels: scalar sums in another order than NumPy's. Lookup: three roundings of float32.
_FLOAT_MOST, _LOOKUP_MOST = 1e-5, 1e-6

# Rows of a matrix that the twin takes at a time, which bounds its memory.
_BLOCK_TILES = 16

Floats = NDArray[np.float32]


def op_count(bundle: Bundle) -> int:
    """How many checks `check` makes, at least."""
    return sum(not isinstance(op, Take) for op in bundle.graph.ops())


def check(bundle: Bundle, target: Target) -> Iterator[Check]:
    """Run one decode step; yields what each op's kernels made of it.

    Of an embedding the row of one token is read; of every other tensor, all of it. Raises
    MissingDependency where nothing can be emulated.
    """
    program = emulated(bundle, target)
    rng = np.random.default_rng(0)
    cache = _filled_cache(bundle, rng)
    tokens = rng.integers(0, bundle.graph.vocabulary, 1).astype(np.int32)
    calls = program.prepare(tokens, cache)
    checker = _Checker(bundle, program, calls, Step(tokens, 1, 1, cache, {}))
    start = 0
    for op, end in zip(bundle.graph.ops(), calls.step.ends, strict=True):
        if start < end:
            yield from checker.run(op, start, end)
        start = end
    yield checker.best()
    program.device.close()


def _filled_cache(bundle: Bundle, rng: np.random.Generator) -> KVCache:
    cache = KVCache(bundle.graph.caches, PAST + 1, "f16")
    for index, layer in enumerate(bundle.graph.caches):
        shape = 2, layer.kv_heads, PAST, layer.head_dim
        cache.append(index, *rng.normal(size=shape).astype(np.float32))
    cache.advance(PAST)
    return cache


class _Checker:
    def __init__(self, bundle: Bundle, program: HvxProgram, calls: Calls, step: Step) -> None:
        self.bundle, self.device, self.calls, self.step = bundle, program.device, calls, step
        self.lowering = calls.lowering
        self.weights = WeightCache(bundle, budget_bytes=0)
        self.tabled: set[tuple[str, int, int]] = set()

    def run(self, op: Op, start: int, end: int) -> Iterator[Check]:
        """Run an op's calls on what the device holds, and compare what they made."""
        self.step.values.update({name: self.value(name) for name in op.inputs()})
        self.calls.run(start, end)
        kernel = self.calls.step.calls[end - 1].kernel.name
        if isinstance(op, Linear) and self.bundle.tensor(op.weight).form.quantized:
            yield from self.lookup(kernel, op)
            return
        want = FUNCTIONS[type(op)](op, self.step, self.weights)
        subject = op.weights()[0] if op.weights() else op.out
        yield compare(kernel, subject, self.value(op.out), want, _FLOAT_MOST)

    def value(self, name: str) -> Floats:
        """What the device holds, [1, width]."""
        shape = 1, self.lowering.widths[name]
        return self.device.read(self.lowering.places[name], np.float32, shape)

    def lookup(self, kernel: str, op: Linear) -> Iterator[Check]:
        """The tables, where this op is the first to use them, and the product."""
        weight = self.bundle.tensor(op.weight)
        x, group = self.step.values[op.x][0], group_of(weight.form)
        one = tables.ratio_one(weight.form.bits, len(x))
        twin = tables.activations(x, group, one)
        if (op.x, group, one) not in self.tabled:
            self.tabled.add((op.x, group, one))
            yield self.tables(op.x, weight.form.bits, twin, self.lowering.tabled[op.x, group, one])
        bias = self.weights.dense(op.bias) if op.bias is not None else np.float32(0)
        integers, products = _twin(weight, twin, one)
        made = self.integers(len(integers))
        if wrong := int((made != integers).sum()):
            detail = f"{wrong} of {len(integers)} rows have another integer"
            yield Check(kernel, weight.name, np.inf, detail)
        else:
            yield compare(kernel, weight.name, self.value(op.out)[0], products + bias, _LOOKUP_MOST)
        for kind in dequantize.kinds_of(weight.form):
            yield self.dequantized(weight, kind)

    def dequantized(self, weight: StoredTensor, kind: dequantize.Kind) -> Check:
        """A matrix as tiles for a matrix unit."""
        kernel = dequantize.dequantize_kernel(weight.form, kind)
        wrong = 0
        for first in range(0, tile_count(weight.shape[0]), _BLOCK_TILES):
            block = _tiles(weight, first)
            rows = block.shape[0]
            want = dequantize.tiles_of(block.form, block.quantized(), kind)
            out = self.lowering.room(f"tiles {want.nbytes}", want.nbytes)
            slots = {
                "codes": self.start(weight, first, "planes", "codes"),
                "scales": self.start(weight, first, "scales"),
                "zeros": self.start(weight, first, "zeros"),
                "out": out,
                "width": weight.shape[1],
                "tiles": tile_count(rows),
            }
            calls = self.device.prepare([Call(kernel, slots, self.lowering.threads)])
            calls.write(np.array(list(slots.values())))
            calls.run(0, 1)
            made = self.device.read(out, want.dtype, want.shape)
            bits = np.dtype(f"u{want.itemsize}")
            both = (dequantize.rows_of(tiles.view(bits), rows) for tiles in (made, want))
            wrong += int(np.not_equal(*both).sum())
        detail = f"{wrong} values are others than the twin's" if wrong else ""
        return Check(kernel.name, weight.name, np.inf if wrong else 0.0, detail)

    def start(self, weight: StoredTensor, tile: int, *names: str) -> int:
        """Address of a tile's part of the first of a tensor's arrays that there is, or 0."""
        for name in names:
            if name in weight.parts:
                tile_bytes = weight.parts[name][0].nbytes
                return self.lowering.part(weight, name) + tile * tile_bytes
        return 0

    def best(self) -> Check:
        """The choice of the best token, of the logits that the device made."""
        calls = self.calls.step.calls
        self.calls.run(len(calls) - 1, len(calls))
        logits = self.value(self.bundle.graph.last.out)[0]
        shape = self.lowering.threads, argmax.LINE
        left = self.device.read(self.lowering.best, np.uint8, shape)
        chosen = argmax.best_of_threads(left)
        wanted = argmax.argmax(logits)
        detail = "" if chosen == wanted else f"{chosen} is the best, and {wanted} the twin's"
        return Check(calls[-1].kernel.name, "logits", np.inf if detail else 0.0, detail)

    def integers(self, rows: int) -> NDArray[np.int32]:
        """What the last product left, by row; even rows of a tile are first there."""
        shape = tile_count(rows), 2, TILE // 2
        held = self.device.read(self.lowering.buffers["integers"], np.int32, shape)
        return held.transpose(0, 2, 1).reshape(-1)[:rows]

    def tables(self, name: str, bits: int, twin: tables.Activations, held: dict[str, int]) -> Check:
        """A value as the lookup kernels read it, all of it in integers but for the peaks."""
        kernel = "hvx_quantize, " + ("hvx_split" if bits == 8 else "hvx_tables")
        wanted: dict[str, NDArray[Any]] = {
            "values": twin.values,
            "peaks": twin.peaks,
        }
        if bits == 8:
            high = (twin.values.astype(np.int32) + 128) >> 8
            both = np.stack([high, twin.values - (high << 8)])  # [2, activations]
            quads = both.reshape(2, -1, tables.QUAD).transpose(1, 0, 2)
            wanted["bytes"] = np.ascontiguousarray(quads).astype(np.int8)
        else:
            wanted["tables"] = twin.tables
        for part, want in wanted.items():
            made = self.device.read(held[part], want.dtype, want.shape)
            if not np.array_equal(made, want):
                return Check(kernel, name, np.inf, f"other {part} than the twin's")
        return Check(kernel, name, 0.0)


def _twin(
    weight: StoredTensor, x: tables.Activations, one: int
) -> tuple[NDArray[np.int32], Floats]:
    """Integers and products of all rows."""
    rows = weight.shape[0]
    integers, products = [], []
    for tile in range(0, tile_count(rows), _BLOCK_TILES):
        block = _tiles(weight, tile)
        scales = row_scales(block.form, block.parts, block.shape[0])
        made = gemv.lookup(block.form, block.quantized(), scales, x)
        integers.append(made)
        products.append(_numbers(made, scales, x, one))
    return np.concatenate(integers), np.concatenate(products)


def _numbers(
    integers: NDArray[np.int32], scales: RowScales, x: tables.Activations, one: int
) -> Floats:
    factor = x.peaks.max() * np.float32(gemv.factor_of(one))
    numbers: Floats = integers * (scales.units[: len(integers)] * factor)
    return numbers.astype(np.float32)


def _tiles(weight: StoredTensor, first: int) -> StoredTensor:
    """Some tiles of a matrix, as a matrix."""
    last = min(first + _BLOCK_TILES, tile_count(weight.shape[0]))
    rows = min(last * TILE, weight.shape[0]) - first * TILE
    whole = weight.form.granularity == "tensor"
    parts = {
        name: part if whole and name == "scales" else part[first:last]
        for name, part in weight.parts.items()
    }
    return StoredTensor(weight.name, weight.form, (rows, weight.shape[1]), parts)
