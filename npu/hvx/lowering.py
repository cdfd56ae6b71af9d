"""From a graph to the kernel calls of a decode step on Hexagon: one row, in the graph's order.

Linear ops look partial sums up in the bundle's planes, where they lie; what reads one value shares
its tables. The other ops are the CPU's kernels, lowered through Hexagon's table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cpu.kernels import argmax, attention, elementwise, embedding, linear, rows
from cpu.kernels.kernel import Kernel, float_slot
from edge.bundle import Bundle
from edge.graph import Add, Attention, Embed, Gate, Int8, Linear, Norm, Op, Rope, Softcap, Take
from edge.kvcache import CacheFormat
from edge.planes import STEP, TILE, StoredTensor, tile_count
from npu.hvx import gemv, tables
from npu.hvx.isa import VECTOR_BYTES
from npu.hvx.weights import group_of, row_scales


class Prepared(Protocol):
    """Calls made ready on a device, whose arguments may change."""

    def write(self, values: NDArray[np.int64]) -> None:
        """Set all slots of all calls."""
        ...

    def run(self, first: int, last: int) -> None:
        """Run the calls from `first` up to `last`, without that."""
        ...


class Device(Protocol):
    """Where kernels and their memory are. Memory lasts as long as the device."""

    def allocate(self, byte_count: int) -> int: ...

    def write(self, address: int, values: NDArray[np.generic]) -> None: ...

    def read(self, address: int, kind: Any, shape: tuple[int, ...]) -> NDArray[Any]: ...

    def map_file(self, path: Path) -> int:
        """Address at which a file lies, read-only."""
        ...

    def prepare(self, calls: Sequence[Call]) -> Prepared: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Dynamic:
    """What a slot must hold: the step's value of that name."""

    name: str


Arguments = Mapping[str, "int | Dynamic"]


@dataclass(frozen=True)
class Call:
    """A kernel and its arguments, split among so many threads."""

    kernel: Kernel
    arguments: Arguments
    threads: int = 1


@dataclass
class Step:
    """The calls of a step. `body` of them come before the head, which a step may leave out, and
    `logits` before the last, which picks the best token.

    `ends` has, for every op of the graph in order, how many calls there are up to and with it.
    """

    calls: list[Call] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    body: int = 0
    logits: int = 0


class Lowering:
    """Lowers a bundle's graph. `weights` is the address of its weights file on the device."""

    def __init__(
        self, bundle: Bundle, device: Device, weights: int, cache_format: CacheFormat, threads: int
    ) -> None:
        self.bundle, self.device, self.weights = bundle, device, weights
        self.cache_format, self.threads = cache_format, threads
        self.graph = bundle.graph
        self.widths = {name: shape[1] for name, shape in self.graph.shapes().items()}
        self.places: dict[str, int] = {}
        self.tabled: dict[tuple[str, int, int], dict[str, int]] = {}
        self.buffers: dict[str, int] = {}
        self.step = Step()

    def run(self) -> Step:
        """All calls, in the graph's order."""
        for subgraph in self.graph.subgraphs:
            if subgraph.kind == "head":
                self.step.body = len(self.step.calls)
            for op in subgraph.ops:
                _LOWER[type(op)](self, op)
                self.step.ends.append(len(self.step.calls))
        self.step.logits = len(self.step.calls)
        self.argmax()
        return self.step

    @property
    def logits(self) -> int:
        """Where the logits are."""
        return self.places[self.graph.last.out]

    @property
    def best(self) -> int:
        """Where every thread leaves its best token."""
        return self.room("best tokens", argmax.LINE * self.threads)

    # Memory and calls.

    def room(self, name: str, byte_count: int) -> int:
        """A buffer that all who name it share."""
        if name not in self.buffers:
            self.buffers[name] = self.device.allocate(byte_count)
        return self.buffers[name]

    def put(self, name: str, values: NDArray[np.generic]) -> int:
        """A copy of an array with zeros behind it, so that whole vectors may be read."""
        if name not in self.buffers:
            self.device.write(self.room(name, values.nbytes + 2 * VECTOR_BYTES), values)
        return self.buffers[name]

    def place(self, name: str) -> int:
        """Memory for a value; every layer uses the same."""
        width = tile_count(self.widths[name]) * TILE + TILE
        self.places[name] = self.room(f"value {_without_layer(name)}/{width}", 4 * width)
        return self.places[name]

    def call(self, kernel: Kernel, arguments: Arguments, threads: int = 1) -> None:
        chosen = {slot: arguments[slot] for slot in kernel.slots}
        self.step.calls.append(Call(kernel, chosen, threads))

    def row(self, x: str, out: str) -> dict[str, int | Dynamic]:
        """What the kernels of whole rows have in common, for one row."""
        return {
            "x": self.places[x],
            "out": self.place(out),
            "rows": 1,
            "width": self.widths[x],
            "x_stride": 0,
            "out_stride": 0,
            "private": 0,
            "x_private": 0,
        }

    def vector(self, name: str) -> int:
        values = self.bundle.tensor(name).parts["values"].astype(np.float32)
        return self.put(f"vector {name}", values)

    def part(self, tensor: StoredTensor, *names: str) -> int:
        """Address of the first of a tensor's arrays that there is, or 0."""
        for name in names:
            if name in tensor.parts:
                return self.weights + self.bundle.start(tensor.name, name)
        return 0

    # Ops.

    def embed(self, op: Embed) -> None:
        table = self.bundle.tensor(op.table)
        form, width = table.form, table.shape[1]
        arguments = {
            "tokens": self.room("tokens", VECTOR_BYTES),
            "codes": self.part(table, "planes", "codes", "values"),
            "scales": self.part(table, "scales"),
            "zeros": self.part(table, "zeros"),
            "out": self.place(op.out),
            "rows": 1,
            "width": width,
            "groups": form.group_count(width) if form.quantized else 0,
            "steps": -(-width // STEP),
            "vocabulary": table.shape[0],
            "out_stride": 0,
            "scale": float_slot(op.scale),
        }
        self.call(embedding.embedding_kernel(form), arguments)

    def norm(self, op: Norm) -> None:
        size = self.bundle.tensor(op.weight).shape[0]
        extra = {"weight": self.vector(op.weight), "size": size, "eps": float_slot(op.eps)}
        self.call(rows.norm_kernel(), self.row(op.x, op.out) | extra)

    def rope(self, op: Rope) -> None:
        """The step's cosines and sines are in tables of one row."""
        half = self.bundle.tensor(op.frequencies).shape[0]
        extra: dict[str, int | Dynamic] = {
            "cos": self.angles("cos", op, half),
            "sin": self.angles("sin", op, half),
            "head_dim": op.head_dim,
            "half": half,
            "position": 0,
            "table_stride": 0,
        }
        self.call(rows.rope_kernel(), self.row(op.x, op.out) | extra)

    def angles(self, name: str, op: Rope, half: int) -> int:
        """Where the step's cosines or sines are."""
        return self.room(angles_name(name, op), 4 * half + VECTOR_BYTES)

    def int8(self, op: Int8) -> None:
        self.call(rows.int8_kernel(), self.row(op.x, op.out))

    def linear(self, op: Linear) -> None:
        weight = self.bundle.tensor(op.weight)
        tiles = tile_count(self.widths[op.out])
        shared = {"out": self.place(op.out), "bias": self.bias(op, tiles), "tiles": tiles}
        if weight.form.quantized:
            self.lookup(op, weight, shared)
            return
        arguments = shared | {
            "x": self.places[op.x],
            "values": self.part(weight, "values"),
            "rows": 1,
            "width": self.widths[op.x],
            "outputs": self.widths[op.out],
            "x_stride": 0,
            "out_stride": 0,
            "x_private": 0,
        }
        self.call(linear.float_linear_kernel(weight.form), arguments, self.threads)

    def lookup(self, op: Linear, weight: StoredTensor, shared: dict[str, int]) -> None:
        form, name = weight.form, weight.name
        scales = row_scales(form, weight.parts, weight.shape[0])
        arguments = self.tables(op.x, group_of(form), form.bits) | shared
        arguments |= {
            "codes": self.part(weight, "planes", "codes"),
            "units": self.put(f"units {name}", scales.units),
            "steps": 0 if scales.steps is None else self.put(f"steps {name}", scales.steps),
            "offsets": 0,
            "scratch": self.room("loops", gemv.SCRATCH_BYTES * self.threads),
            "sums_out": self.room("integers", 4 * TILE * self.most_tiles()),
        }
        if scales.offsets is not None:
            arguments["offsets"] = self.put(f"offsets {name}", scales.offsets)
        self.call(gemv.lookup_kernel(form), arguments, self.threads)

    def most_tiles(self) -> int:
        return max(tile_count(width) for width in self.widths.values())

    def tables(self, name: str, group: int, bits: int) -> dict[str, int]:
        """The tables of a value, made once for all that read it in the same way."""
        width = self.widths[name]
        one = tables.ratio_one(bits, width)
        key = name, group, one
        if key in self.tabled:
            return self.tabled[key]
        blocks = tables.block_count(width)
        sizes = {
            "values": 2 * blocks * tables.BLOCK,
            "peaks": 4 * blocks,
            "sums": VECTOR_BYTES * blocks * tables.BLOCK // group,
            "tables": blocks * tables.TABLE_BYTES,
            "bytes": 2 * blocks * tables.BLOCK,
        }
        kind = f"{_without_layer(name)}/{width}/{group}/{one}"
        made = {part: self.room(f"{part} {kind}", size) for part, size in sizes.items()}
        made |= {
            "x": self.places[name],
            "width": width,
            "groups": tables.BLOCK // group,
            "one": one,
            "blocks": blocks,
            "factor": float_slot(gemv.factor_of(one)),
        }
        self.call(tables.quantize_kernel(), made, self.threads)
        by_table = tables.split_kernel() if bits == 8 else tables.tables_kernel()
        self.call(by_table, made, self.threads)
        self.tabled[key] = made
        return made

    def bias(self, op: Linear, tiles: int) -> int:
        """The bias, or zeros where there is none."""
        if op.bias is not None:
            return self.vector(op.bias)
        return self.room(f"zeros {tiles}", 4 * TILE * tiles)

    def attention(self, op: Attention) -> None:
        cache = self.graph.caches[op.cache]
        query, key, value = op.inputs()
        slots = attention.head_slots(op, cache, self.widths[query])
        scratch = slots["scratch_stride"] * self.threads
        arguments: dict[str, int | Dynamic] = {
            **slots,
            "query": self.places[query],
            "key": self.places[key],
            "value": self.places[value],
            "keys": Dynamic(f"keys/{op.cache}"),
            "values": Dynamic(f"values/{op.cache}"),
            "out": self.place(op.out),
            "rows": 1,
            "position": Dynamic("position"),
            "capacity": Dynamic("capacity"),
            "scratch": self.room(f"scratch {cache.head_dim}", scratch),
        }
        arguments |= {slot: 0 for slot in attention.SLOTS if slot not in arguments}
        self.call(attention.attention_kernel(self.cache_format), arguments, self.threads)

    def elementwise(self, op: Gate | Add | Softcap) -> None:
        kernel, number = elementwise.kernel_of(op)
        a, b = op.inputs()[0], op.inputs()[-1]
        arguments = {"a": self.places[a], "b": self.places[b], "out": self.place(op.out)}
        arguments |= {"rows": 1, "tiles": tile_count(self.widths[op.out]), "number": number}
        arguments |= {slot: 0 for slot in kernel.slots if slot not in arguments}
        self.call(kernel, arguments, self.threads)

    def argmax(self) -> None:
        name = self.graph.last.out
        arguments = {"x": self.places[name], "out": self.best, "width": self.widths[name]}
        self.call(argmax.argmax_kernel(), arguments, self.threads)

    def take(self, op: Take) -> None:
        """No work: the row is the last one."""
        self.places[op.out] = self.places[op.x]


_LOWER: dict[type[Op], Callable[..., None]] = {
    Embed: Lowering.embed,
    Norm: Lowering.norm,
    Rope: Lowering.rope,
    Int8: Lowering.int8,
    Linear: Lowering.linear,
    Attention: Lowering.attention,
    Gate: Lowering.elementwise,
    Add: Lowering.elementwise,
    Softcap: Lowering.elementwise,
    Take: Lowering.take,
}


def angles_name(name: str, op: Rope) -> str:
    """What a rotation's table of cosines or sines is called."""
    return f"{name} {op.frequencies}/{op.scale}"


def _without_layer(name: str) -> str:
    """The value's name in any layer: layers.3.q -> q."""
    return name.split(".", 2)[2] if name.startswith("layers.") else name
