"""Linear projections of a few rows: codes expanded from planes, integer dot products, scales.

out[m, n] = sum over blocks b of activation_scale[m, b] * weight_scale[n, b] * (sum of code * x -
zero * sum of x). One row keeps its sums in registers; more rows expand a block of 64 weight rows
once, into the first-level cache, and use it for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpu.codegen.language import F16, F32, I8, I32, I64, Code, Value, Variable
from cpu.kernels.activations import quantize_rows
from cpu.kernels.kernel import Arguments, Kernel, Thread, minimum
from edge.formats import Format
from edge.planes import QUAD, STEP, TILE, Quantized

# Weights that share an accumulation where a scale covers more of the row.
WIDE_BLOCK = 128

# A row's blocks are read as this many streams, and lines asked for this many bytes ahead in each:
# processors fetch ahead within a page and for a stream at a time. On the 1.8B shape this reads
# 23.5 GB/s with two threads where one stream without asking reads 19.
_STREAMS = 4
_AHEAD = 1024
_LINE = 64

# Steps of a turn of the innermost loop where a tile is taken in parts.
UNROLL = 4

SLOTS = (
    *("x", "codes", "scales", "zeros", "bias", "out"),
    *("rows", "width", "tiles", "x_stride", "out_stride", "padded"),
    *("row_scales", "row_sums", "x_private"),
)


def block_of(form: Format) -> int:
    """Weights that share an accumulation: the group, or WIDE_BLOCK for wider scales."""
    return form.group if form.granularity == "group" else WIDE_BLOCK


@dataclass(frozen=True)
class _Shape:
    """What is fixed when a kernel is compiled."""

    form: Format

    @property
    def block(self) -> int:
        return block_of(self.form)

    @property
    def steps(self) -> int:
        return self.block // STEP

    @property
    def step_bytes(self) -> int:
        """Bytes of a step of one tile."""
        return TILE * (self.form.bits if self.form.bits < 8 else STEP)

    @property
    def grouped(self) -> bool:
        return self.form.granularity == "group"


def linear_kernel(form: Format) -> Kernel:
    """y float32 [rows, outputs] of quantized rows, in slices of tiles. See `SLOTS`.

    Where `x_private` is not 0, each thread has a copy of x of its own, that many bytes apart.
    """
    shape = _Shape(form)

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        first, last = thread.share(a.integer("tiles"))
        with code.loop(first, last) as tile:
            _Tile(code, a, thread, tile, shape).run()

    return Kernel(f"linear_{form}", SLOTS, body)


class _Tile:
    """Writes the code for 64 outputs of one tile."""

    def __init__(
        self, code: Code, a: Arguments, thread: Thread, tile: Value, shape: _Shape
    ) -> None:
        self.code, self.a, self.shape, self.tile = code, a, shape, tile
        self.form = shape.form
        self.layout = code.isa.layout(self.form.bits)
        self.parts = range(0, TILE, self.layout.row_count)
        width = a.integer("width")
        self.steps = (width + (STEP - 1)) // STEP
        self.blocks = (width + (shape.block - 1)) // shape.block
        self.x = code.offset(a.pointer("x"), a.integer("x_private") * thread.index)
        self.quads = (width + (QUAD - 1)) // QUAD
        by_quads, by_steps = self.quads * (QUAD * TILE), self.steps * shape.step_bytes
        tile_bytes = by_quads if self.form.bits == 8 else by_steps
        self.codes = code.offset(a.pointer("codes"), tile * tile_bytes)

    def run(self) -> None:
        with self.code.loop(0, self.a.integer("rows")) as row:
            self.one_row(row)

    def one_row(self, row: Value) -> None:
        code, x = self.code, self.code.offset(self.x, row * self.a.integer("x_stride"))
        zero = code.constant(F32.of(code.isa.lanes), 0.0)
        sums = [[code.variable(zero) for _ in self.layout.rows] for _ in self.parts]
        whole = self.a.integer("width") // self.shape.block
        length = whole // _STREAMS
        with code.loop(0, length) as index, code.loop(0, _STREAMS) as stream:
            block = stream * length + index
            self.one_block(x, block, block * self.shape.steps, None, sums)
        with code.loop(length * _STREAMS, whole) as block:
            self.one_block(x, block, block * self.shape.steps, None, sums)
        with code.when(whole < self.blocks):
            self.one_block(x, whole, whole * self.shape.steps, self.steps, sums)
        for part, totals in zip(self.parts, sums, strict=True):
            self.finish(row, part, [total.get() for total in totals])

    def one_block(
        self, x: Value, block: Value, first: Value, last: Value | None, sums: list[list[Variable]]
    ) -> None:
        """One block of every row, from a step to another, or of all its steps."""
        code = self.code
        for part, totals in zip(self.parts, sums, strict=True):
            terms = self.start(x, block)
            if last is not None:
                with code.loop(first, last) as index:
                    self.step(x, index, part, terms, tail=True)
            elif len(self.parts) == 1:
                for i in range(self.shape.steps):
                    self.step(x, first + i, part, terms)
            else:
                # a block of code of its own keeps the scheduler from mixing what follows in
                with code.loop(first, first + self.shape.steps, UNROLL) as index:
                    for i in range(UNROLL):
                        self.step(x, index + i, part, terms)
            self.scale(x, block, part, terms, totals)

    def start(self, x: Value, block: Value) -> list[list[Variable]]:
        """Accumulators of both terms of a block.

        The low term starts at minus zero times the sum of x, where the format is symmetric.
        """
        code = self.code
        nothing = code.constant(I32.of(code.isa.lanes), 0)
        high = [code.variable(nothing) for _ in self.layout.rows]
        if self.form.asymmetric:
            return [high, [code.variable(nothing) for _ in self.layout.rows]]
        sums = self.block_sums(x, block)
        zero = self.form.zero - self.layout.offset
        return [high, [code.variable(sums * (-zero * f)) for f in self.layout.factors]]

    def block_sums(self, x: Value, block: Value) -> Value:
        """Sum of a block's x, in each lane over the weights that the lane takes."""
        code, lanes = self.code, self.code.isa.lanes
        offset = self.a.integer("row_sums") + block * 8
        if self.layout.alternating:
            return code.load(I64, x, offset).broadcast(lanes // 2).cast(I32.of(lanes))
        both = code.load(I32, x, offset) + code.load(I32, x, offset + 4)
        return both.broadcast(lanes)

    def step(
        self,
        x: Value,
        index: Value,
        part: int,
        terms: list[list[Variable]],
        *,
        tail: bool = False,
    ) -> None:
        """Dot products of 8 weights (fewer in a tail) of rows from `part` on with both terms."""
        code, whole_bytes = self.code, self.form.bits == 8
        if part == 0:
            self.prefetch(index)
        codes = self.byte_codes(index, part, tail) if whole_bytes else self.expanded(index, part)
        dot = code.isa.dot_bytes if whole_bytes else code.isa.dot
        taken = [
            self.activations(x, index * STEP + self.a.integer("padded") * term)
            for term in range(len(terms))
        ]
        for place, vector in enumerate(codes):  # each is used up before the next is made
            slot = self.layout.slots[place]
            for dots, values in zip(terms, taken, strict=True):
                dots[slot].set(dot(code, dots[slot].get(), vector, values[place]))

    def prefetch(self, index: Value) -> None:
        """Ask for the codes that follow in this stream."""
        offset = index * self.shape.step_bytes
        for line in range(0, self.shape.step_bytes, _LINE):
            self.code.prefetch(self.codes, offset + (line + _AHEAD))

    def activations(self, x: Value, offset: Value) -> list[Value]:
        """8 bytes of x, spread as each vector of codes takes them."""
        code, lanes = self.code, self.code.isa.lanes
        kind = I8.of(4 * lanes)
        if self.layout.alternating:
            both = code.load(I64, x, offset).broadcast(lanes // 2).cast(kind)
            return [both] * len(self.layout.slots)
        if code.isa.dots_by_lane:
            pair = code.load(I32.of(2), x, offset)
            halves = [pair.shuffle([half] * lanes).cast(kind) for half in range(2)]
        else:
            quads = [code.load(I32, x, offset + 4 * half) for half in range(2)]
            halves = [quad.broadcast(lanes).cast(kind) for quad in quads]
        return [halves[half] for half in self.layout.halves]

    def expanded(self, index: Value, part: int) -> Iterator[Value]:
        code, size = self.code, self.code.isa.vector_bytes
        offset = index * self.shape.step_bytes
        planes = [
            [
                code.load(I8.of(size), self.codes, offset + (plane * TILE + first))
                for first in range(part, part + self.layout.row_count, size)
            ]
            for plane in range(self.form.bits)
        ]
        return code.isa.expand(code, planes)

    def byte_codes(self, index: Value, part: int, tail: bool) -> Iterator[Value]:
        code, size = self.code, self.code.isa.vector_bytes
        for half in range(2):
            quad = index * 2 + half
            if tail:
                # the last step may be of one half; x of the other is 0, so any codes will do
                quad = minimum(quad, self.quads - 1)
            offset = quad * (QUAD * TILE)
            for first in range(part * QUAD, (part + self.layout.row_count) * QUAD, size):
                yield code.load(I8.of(size), self.codes, offset + first)

    def scale(
        self,
        x: Value,
        block: Value,
        part: int,
        terms: list[list[Variable]],
        sums: list[Variable],
    ) -> None:
        """sums += (256 * high + low) * activation scale * weight scale."""
        code, lanes = self.code, self.code.isa.lanes
        activation = code.load(F32, x, self.a.integer("row_scales") + block * 4)
        index = self.tile * self.blocks + block
        kind, place = F16.of(self.layout.row_count), index * (2 * TILE) + 2 * part
        rows = code.load(kind, self.a.pointer("scales"), place) if self.shape.grouped else None
        for slot, (high, low, total) in enumerate(zip(*terms, sums, strict=True)):
            factor = (activation * (1 / self.layout.factors[slot])).broadcast(lanes)
            if rows is not None:
                factor = factor * rows.shuffle(self.layout.rows[slot]).to(F32)
            made = (high.get() << 8) + low.get()
            if self.form.asymmetric:
                made = made - self.zero_product(x, block, part, slot)
            total.set(made.to(F32).fma(factor, total.get()))

    def zero_product(self, x: Value, block: Value, part: int, slot: int) -> Value:
        """Zero times the sum of a block's x, in the lanes of an accumulator."""
        code = self.code
        index = self.tile * self.blocks + block if self.shape.grouped else self.tile
        kind, place = I8.of(self.layout.row_count), index * TILE + part
        zeros = code.load(kind, self.a.pointer("zeros"), place)
        picked = zeros.shuffle(self.layout.rows[slot]).to(I32, unsigned=True) - self.layout.offset
        return picked * self.block_sums(x, block) * self.layout.factors[slot]

    def finish(self, row: Value, part: int, sums: list[Value]) -> None:
        """Put the rows in order, apply scales that are the whole row's, add the bias, store."""
        code, a, kind = self.code, self.a, F32.of(self.layout.row_count)
        if self.layout.alternating:
            even, odd = (range(first, code.isa.lanes, 2) for first in range(2))
            sums = [s.shuffle(list(even)) + s.shuffle(list(odd)) for s in sums]
        step = 2 if self.layout.alternating else 1
        held = [row for rows in self.layout.rows for row in rows[::step]]
        outputs = _concatenated(sums).shuffle([held.index(row) for row in range(len(held))])
        offset = self.tile * (4 * TILE) + 4 * part
        if self.form.granularity == "channel":
            outputs = outputs * code.load(kind, a.pointer("scales"), offset)
        elif self.form.granularity == "tensor":
            outputs = outputs * code.load(F32, a.pointer("scales"))
        bias = code.load(kind, a.pointer("bias"), offset)
        code.store(outputs + bias, a.pointer("out"), row * a.integer("out_stride") + offset)


def _concatenated(vectors: list[Value]) -> Value:
    """One vector of all lanes in order; the number of vectors is a power of two."""
    while len(vectors) > 1:
        lanes = 2 * vectors[0].type.lanes
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [a.shuffle(range(lanes), b) for a, b in pairs]
    return vectors[0]


def linear(form: Format, weights: Quantized, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The twin: the same integers and scales in NumPy, float32 [rows, outputs]."""
    block, width = block_of(form), x.shape[1]
    values, scales = quantize_rows(x, block)
    blocks = scales.shape[1]

    def blocked(array: NDArray[np.integer]) -> NDArray[np.int64]:
        padded = np.pad(array.astype(np.int64), ((0, 0), (0, blocks * block - width)))
        return padded.reshape(len(array), blocks, block)

    xs = blocked(values)
    dots = np.einsum("mbk,nbk->mnb", xs, blocked(weights.codes))
    zeros = np.array(form.zero) if weights.zeros is None else weights.zeros.astype(np.int64)
    dots -= np.broadcast_to(zeros, (len(weights.codes), blocks)) * xs.sum(axis=2)[:, None, :]
    factors = scales[:, None, :] * np.broadcast_to(
        weights.scales.astype(np.float32), (len(weights.codes), blocks)
    )
    return (dots * factors).sum(axis=2).astype(np.float32)


FLOAT_SLOTS = (
    *("x", "values", "bias", "out", "rows", "width", "tiles", "outputs"),
    *("x_stride", "out_stride", "x_private"),
)


def float_linear_kernel(form: Format) -> Kernel:
    """y float32 [rows, outputs] = x @ values.T + bias, of weights that are not quantized."""

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        first, last = thread.share(a.integer("tiles"))
        outputs = a.integer("outputs")
        last = minimum(last * TILE, outputs)
        x = code.offset(a.pointer("x"), a.integer("x_private") * thread.index)
        with code.loop(0, a.integer("rows")) as row, code.loop(first * TILE, last) as output:
            source = code.offset(x, row * a.integer("x_stride"))
            total = _float_dot(code, a, form, source, output)
            bias = code.load(F32, a.pointer("bias"), output * 4)
            place = row * a.integer("out_stride") + output * 4
            code.store(total + bias, a.pointer("out"), place)

    return Kernel(f"linear_{form}", FLOAT_SLOTS, body)


def _float_dot(code: Code, a: Arguments, form: Format, x: Value, output: Value) -> Value:
    lanes, width = code.isa.lanes, a.integer("width")
    stored = F16 if form.bits == 16 else F32
    weights = code.offset(a.pointer("values"), output * width * stored.byte_count)
    vectors = width - width % lanes
    sums = code.variable(code.constant(F32.of(lanes), 0.0))
    with code.loop(0, vectors, lanes) as i:
        w = code.load(stored.of(lanes), weights, i * stored.byte_count).to(F32)
        sums.set(code.load(F32.of(lanes), x, i * 4).fma(w, sums.get()))
    total = code.variable(sums.get().total())
    with code.loop(vectors, width) as i:
        w = code.load(stored, weights, i * stored.byte_count).to(F32)
        total.set(code.load(F32, x, i * 4).fma(w, total.get()))
    return total.get()
