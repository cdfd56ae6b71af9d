"""Linear projections of a few rows: codes expanded from planes, integer dot products, scales.

out[m, n] = sum over blocks b of activation_scale[m, b] * weight_scale[n, b] * (sum of code * x -
zero * sum of x). A row keeps its sums in registers, and expands the codes anew: for many rows see
`batch`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cpu.codegen.isa import Expansion
from cpu.codegen.language import F16, F32, Code, Value, Variable
from cpu.kernels.activations import TERMS, quantize_rows
from cpu.kernels.blocks import Outputs, Piece, Shape, block_of
from cpu.kernels.kernel import CHAINS, Arguments, Kernel, Thread, joined, minimum
from cpu.kernels.products import Products
from edge.formats import Format
from edge.planes import STEP, TILE, Quantized, zeros_of

_LINE = 64

# Bytes ahead at which scales are asked for: some blocks, 2 % of the time at 2 bits and at 4.
_SCALES_AHEAD_BYTES = 1024

SLOTS = (
    *("x", "codes", "scales", "zeros", "bias", "out"),
    *("rows", "width", "tiles", "x_stride", "out_stride", "padded"),
    *("row_scales", "row_sums", "x_private"),
)


def linear_kernel(form: Format) -> Kernel:
    """y float32 [rows, outputs] of quantized rows, in slices of tiles. See `SLOTS`.

    Where `x_private` is not 0, each thread has a copy of x of its own, that many bytes apart.
    """
    shape = Shape(form)

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        first, last = thread.share(a.integer("tiles"))
        with code.loop(first, last) as tile:
            DecodeTile(code, a, thread, tile, shape, code.isa.few).run()

    return Kernel(f"linear_{form}", SLOTS, body)


class DecodeTile(Outputs):
    """Writes the code for 64 outputs of one tile, row after row."""

    def __init__(
        self,
        code: Code,
        a: Arguments,
        thread: Thread,
        tile: Value,
        shape: Shape,
        expansion: Expansion,
    ) -> None:
        super().__init__(code, a, tile, shape, expansion)
        self.slots = range(len(self.layout.rows))
        self.x = code.offset(a.pointer("x"), a.integer("x_private") * thread.index)

    def run(self) -> None:
        with self.code.loop(0, self.a.integer("rows")) as row:
            self.one_row(row)

    def one_row(self, row: Value) -> None:
        code, x = self.code, self.code.offset(self.x, row * self.a.integer("x_stride"))
        zero = code.constant(F32.of(code.isa.lanes), 0.0)
        sums = [[code.variable(zero) for _ in self.lanes] for _ in self.parts]
        whole = self.a.integer("width") // self.shape.block
        with self.streamed(whole) as block:
            self.one_block(x, block, block * self.shape.steps, None, sums)
        with code.loop(whole - whole % code.isa.reading.streams, whole) as block:
            self.one_block(x, block, block * self.shape.steps, None, sums)
        with code.when(whole < self.blocks):
            self.one_block(x, whole, whole * self.shape.steps, self.steps, sums)
        for part, totals in zip(self.parts, sums, strict=True):
            self.finish(row, part, [total.get() for total in totals])

    @contextlib.contextmanager
    def streamed(self, whole: Value) -> Iterator[Value]:
        """Loop over blocks by streams, of each as many.

        Of one stream without a loop within: out of that, the compiler would hoist all scales of a
        block, to registers that are not there.
        """
        code, streams = self.code, self.code.isa.reading.streams
        length = whole // streams
        with code.loop(0, length) as index:
            if streams == 1:
                yield index
            else:
                with code.loop(0, streams) as stream:
                    yield stream * length + index

    def one_block(
        self, x: Value, block: Value, first: Value, last: Value | None, sums: list[list[Variable]]
    ) -> None:
        """One block of every row, from a step to another, or of all its steps."""
        code = self.code
        self.prefetch_scales(block)
        for part, totals in zip(self.parts, sums, strict=True):
            tail = last is not None
            unroll = 1 if tail else min(code.isa.unroll, self.shape.steps // 2)
            end = first + self.shape.steps if last is None else last
            products = self.products(x, block, self.slots, unroll)
            with code.loop(first, end, unroll) as index:
                for i in range(unroll):
                    self.step(x, index + i, part, products, tail=tail)
                products.turn()
            terms, scales = products.terms(), self.weight_scales(block, part, self.slots)
            self.add_scaled(x, Piece(block, part, self.slots), terms, scales, totals)

    def step(
        self, x: Value, index: Value, part: int, products: Products, *, tail: bool = False
    ) -> None:
        """Dot products of 8 weights (fewer in a tail) of rows from `part` on with both terms."""
        if part == 0:
            self.prefetch(index)
        taken = [
            self.activations(x, index * STEP + self.a.integer("padded") * term)
            for term in range(TERMS)
        ]
        for place, vector in enumerate(self.vectors(index, part, tail=tail)):
            slot = self.layout.slots[place]  # each vector is used up before the next is made
            for term, values in enumerate(taken):
                products.add(term, slot, vector, values[place])

    def prefetch(self, index: Value) -> None:
        """Ask for the codes that follow in this stream."""
        ahead = index * self.shape.step_bytes + self.code.isa.reading.ahead_bytes
        self.prefetch_lines(self.codes, ahead, self.shape.step_bytes)

    def prefetch_scales(self, block: Value) -> None:
        """Ask for the scales of a block that follows."""
        if self.shape.grouped:
            ahead = self.scales_place(block) + _SCALES_AHEAD_BYTES
            self.prefetch_lines(self.a.pointer("scales"), ahead, 2 * TILE)

    def prefetch_lines(self, pointer: Value, first: Value, byte_count: int) -> None:
        for line in range(0, byte_count, _LINE):
            self.code.prefetch(pointer, first + line, keep=self.code.isa.reading.keep)


def linear(form: Format, weights: Quantized, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The twin: the same integers and scales in NumPy, float32 [rows, outputs]."""
    block, width = block_of(form), x.shape[1]
    values, scales = quantize_rows(x, block)
    blocks = scales.shape[1]

    def blocked(array: NDArray[np.integer]) -> NDArray[np.int64]:
        padded = np.pad(array.astype(np.int64), ((0, 0), (0, blocks * block - width)))
        return padded.reshape(len(array), blocks, block)

    xs = blocked(values)
    dots = np.einsum("mbk,nbk->mnb", xs, blocked(weights.codes)).astype(np.float64)
    zeros = np.array(form.zero) if weights.zeros is None else zeros_of(form, weights.zeros)
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
    sums = [code.variable(code.constant(F32.of(lanes), 0.0)) for _ in range(CHAINS)]

    def add(chain: Variable, i: Value) -> None:
        w = code.load(stored.of(lanes), weights, i * stored.byte_count).to(F32)
        chain.set(code.load(F32.of(lanes), x, i * 4).fma(w, chain.get()))

    whole, vectors = width - width % (CHAINS * lanes), width - width % lanes
    with code.loop(0, whole, CHAINS * lanes) as i:
        for number, chain in enumerate(sums):
            add(chain, i + number * lanes)
    with code.loop(whole, vectors, lanes) as i:
        add(sums[0], i)
    total = code.variable(joined(sums).total())
    with code.loop(vectors, width) as i:
        w = code.load(stored, weights, i * stored.byte_count).to(F32)
        total.set(code.load(F32, x, i * 4).fma(w, total.get()))
    return total.get()
