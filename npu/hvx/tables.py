"""Activations as lookup tables: 4 neighbours make 16 signed sums; a plane's nibble picks one.

In blocks of 256 along the row, activations are rounded to integers of a scale of their own, such
that no sum of 4 leaves 16 bits. Entry i of a quad's table is the sum of its activations, each with
a plus where its bit of i is 1 and a minus where it is 0; so entry 15 - i is minus entry i. A weight
of b bits, code - zero, is half of (its planes' signs, weighted by powers of two, plus 2^b - 1 - 2
zero), which is where the sums of the activations come in (T-MAN, arXiv 2511.11248, section 4).

A vector holds the tables of 16 activations as `vlut16` reads them (see `vectors.lookup16`). Blocks'
scales are told as ratios to the largest one, so that integers of all blocks can be added.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpu.codegen.language import F32, I8, I16, I32, Code, Value
from cpu.kernels.kernel import Arguments, Kernel, Thread, minimum
from edge.planes import STEP
from npu.hvx import vectors
from npu.hvx.isa import VECTOR_BYTES

# Activations that share a scale, and whose tables fill 16 vectors.
BLOCK = 256
QUAD = 4
TABLE_BYTES = BLOCK // QUAD * 16 * 2

# The largest sum of 4 magnitudes: rounding may add half of each, and the high byte of a value, as
# 8-bit weights take it, is at most 127.
PEAK = 127 * 256

# Blocks whose sums stay below it are zeros: the inverse of their scale would be infinite.
LEAST = 1e-30

# A block's scale relative to the largest is a fraction of this. Sums of a row's blocks must stay in
# 32 bits, so it is less for long rows of wide codes (`ratio_one`).
RATIO_ONE = 32767

QUANTIZE_SLOTS = ("x", "values", "peaks", "ratios", "sums", "width", "group", "one")


@dataclass(frozen=True)
class Activations:
    """A row of activations as the kernels take it; what `activations` makes, and the kernels must.

    values int16 [blocks * 256], peaks float32 [blocks + 1] (the largest is last), ratios int32
    [blocks], sums int32 [groups], tables int16 [blocks, 16, 64].
    """

    values: NDArray[np.int16]
    peaks: NDArray[np.float32]
    ratios: NDArray[np.int32]
    sums: NDArray[np.int32]
    tables: NDArray[np.int16]


def block_count(width: int) -> int:
    return -(-width // BLOCK)


def ratio_one(bits: int, width: int) -> int:
    """The ratio of the block with the largest scale, such that sums of `width` weights fit.

    A term is at most 2^bits * 65536 for 4 weights; dividing by 2^15 afterwards leaves this much.
    """
    largest = 2**bits * 65536 * (-(-width // QUAD))
    excess = max(0, largest.bit_length() - 31)
    return RATIO_ONE >> excess


def quantize_kernel() -> Kernel:
    """x float32 [width] -> values, peaks, ratios and sums of groups, each in all of a vector.

    One thread makes all. `one` is `ratio_one`; `values` has room for whole blocks; a group is whole
    steps.
    """

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        with code.when(thread.index.equals(0)):
            _Quantizer(code, a).run()

    return Kernel("hvx_quantize", QUANTIZE_SLOTS, body)


class _Quantizer:
    """Writes the code: scalar float instructions, which every version has."""

    def __init__(self, code: Code, a: Arguments) -> None:
        self.code, self.a = code, a
        self.width = a.integer("width")
        self.blocks = (self.width + (BLOCK - 1)) // BLOCK

    def run(self) -> None:
        code, a = self.code, self.a
        largest = code.variable(code.constant(F32, 0.0))
        for block in self.each_block():
            peak = self.peak(block)
            code.store(peak, a.pointer("peaks"), block * 4)
            largest.set(largest.get().maximum(peak))
        code.store(largest.get(), a.pointer("peaks"), self.blocks * 4)
        share = _over(a.integer("one").to(F32), largest.get())
        for block in self.each_block():
            peak = code.load(F32, a.pointer("peaks"), block * 4)
            ratio = _nearest(peak * share)
            code.store(ratio | (ratio << 16), a.pointer("ratios"), block * 4)
            self.round(block, _over(code.constant(F32, PEAK), peak))
        self.sum_groups()

    def each_block(self) -> Iterator[Value]:
        """Write code for a whole block, then for one that the row ends in."""
        whole = self.width // BLOCK
        self.cut = False
        with self.code.loop(0, whole) as block:
            yield block
        self.cut = True
        with self.code.when(whole < self.blocks):
            yield whole

    def some(self, block: Value, first: Value, count: int) -> list[Value]:
        """Values of a block from `first` on, or 0 past the row's end."""
        code, x = self.code, self.a.pointer("x")
        start = block * BLOCK + first
        if not self.cut:
            at = code.offset(x, start * 4)
            return [code.load(F32, at, 4 * i) for i in range(count)]
        values = []
        for index in (start + i for i in range(count)):
            value = code.load(F32, x, minimum(index, self.width - 1) * 4)
            values.append((index < self.width).select(value, 0.0))
        return values

    def peak(self, block: Value) -> Value:
        """Largest sum of 4 magnitudes."""
        code = self.code
        peak = code.variable(code.constant(F32, 0.0))
        with code.loop(0, BLOCK, 4 * QUAD) as first:
            sizes = [value.magnitude() for value in self.some(block, first, 4 * QUAD)]
            sums = [
                (a + b) + (c + d)
                for a, b, c, d in (sizes[i : i + QUAD] for i in range(0, 4 * QUAD, QUAD))
            ]
            most = sums[0].maximum(sums[1]).maximum(sums[2].maximum(sums[3]))
            peak.set(peak.get().maximum(most))
        return peak.get()

    def round(self, block: Value, inverse: Value) -> None:
        code = self.code
        with code.loop(0, BLOCK, 2 * QUAD) as first:
            at = code.offset(self.a.pointer("values"), (block * BLOCK + first) * 2)
            for index, value in enumerate(self.some(block, first, 2 * QUAD)):
                code.store(_nearest(value * inverse).to(I16), at, 2 * index)

    def sum_groups(self) -> None:
        code, a = self.code, self.a
        group = a.integer("group")
        with code.loop(0, (self.blocks * BLOCK) // group) as index:
            total = code.variable(code.constant(I32, 0))
            with code.loop(0, group // STEP) as step:
                at = code.offset(a.pointer("values"), (index * group + step * STEP) * 2)
                for i in range(STEP):
                    total.set(total.get() + code.load(I16, at, 2 * i).to(I32))
            vectors.store(vectors.splat(total.get()), a.pointer("sums"), index * VECTOR_BYTES)


def _over(a: Value, b: Value) -> Value:
    """a / b, or 0 where b is next to nothing."""
    return (b > LEAST).select(a / b.maximum(LEAST), 0.0)


def _nearest(value: Value) -> Value:
    """Rounded to a whole number, ties to even."""
    return value.code.intrinsic("llvm.hexagon.F2.conv.sf2w", I32, value)


def tables_kernel() -> Kernel:
    """values int16 [blocks * 256] -> tables [blocks, 16, 64]; threads take blocks."""

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        first, last = thread.share(a.integer("blocks"))
        with code.loop(first * 16, last * 16) as index:
            made = _four_tables(code, code.offset(a.pointer("values"), index * 32))
            vectors.store(made, a.pointer("tables"), index * VECTOR_BYTES)

    return Kernel("hvx_tables", ("values", "tables", "blocks"), body)


def _four_tables(code: Code, values: Value) -> Value:
    """The tables of 16 activations, as one vector.

    A term is negated where its bit of the entry's index is 0: all bits turned over, and 1 added,
    which the last constant does for all terms.
    """
    index = [lane // 2 % 16 for lane in range(64)]
    made: Value | None = None
    for place in range(QUAD):
        turned = [0 if i >> place & 1 else -1 for i in index]
        term = _spread(code, values, place) ^ code.constant(vectors.HALVES, turned)
        made = term if made is None else made + term
    assert made is not None
    minus = [QUAD - i.bit_count() for i in index]
    return made + code.constant(vectors.HALVES, minus)


def _spread(code: Code, values: Value, place: int) -> Value:
    """Activation `place` of each of four quads, in the lanes of its table."""
    quads = [
        code.load(I16, values, 2 * (QUAD * quad + place)).to(I32, unsigned=True)
        for quad in range(4)
    ]
    first, second = (vectors.splat(quads[half] | (quads[half + 2] << 16)) for half in range(2))
    both = first.shuffle([*range(16), *range(48, 64)], second)
    return both.cast(vectors.HALVES)


def split_kernel() -> Kernel:
    """values int16 [quads * 4] -> bytes: of each quad 4 high bytes, then 4 low ones, all signed."""

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        first, last = thread.share(a.integer("quads"))
        with code.loop(first, last) as quad:
            for place in range(QUAD):
                at = quad * 8 + 2 * place
                value = code.load(I16, a.pointer("values"), at).to(I32)
                high = (value + 128).signed_shift(8)
                code.store(high.to(I8), a.pointer("bytes"), quad * 8 + place)
                code.store((value - (high << 8)).to(I8), a.pointer("bytes"), quad * 8 + 4 + place)

    return Kernel("hvx_split", ("values", "bytes", "quads"), body)


def activations(x: NDArray[np.float32], group: int, one: int) -> Activations:
    """The twin of the kernels, for one row x float32 [width]."""
    blocks = block_count(len(x))
    padded = np.pad(x, (0, blocks * BLOCK - len(x))).astype(np.float32)
    a, b, c, d = np.abs(padded).reshape(blocks, BLOCK // QUAD, QUAD).transpose(2, 0, 1)
    peaks = ((a + b) + (c + d)).max(axis=1)
    largest = peaks.max()
    ratios = np.rint(peaks * _inverse(largest, one)).astype(np.int32)
    inverse = _inverse(peaks, PEAK)
    values = np.rint(padded.reshape(blocks, BLOCK) * inverse[:, None]).astype(np.int16)
    return Activations(
        values=values.reshape(-1),
        peaks=np.append(peaks, largest),
        ratios=ratios | ratios << 16,
        sums=values.astype(np.int32).reshape(-1, group).sum(axis=1, dtype=np.int32),
        tables=_tables(values.reshape(blocks, -1, QUAD)),
    )


def _inverse(sizes: NDArray[np.float32], number: int) -> NDArray[np.float32]:
    made = np.float32(number) / np.maximum(sizes, np.float32(LEAST))
    return np.where(sizes > np.float32(LEAST), made, np.float32(0)).astype(np.float32)


def signed_sums(quads: NDArray[np.int16]) -> NDArray[np.int16]:
    """Tables in plain order: quads [..., 4] -> [..., 16]."""
    index = np.arange(16)[:, None]
    signs = np.where(index >> np.arange(QUAD) & 1, 1, -1)
    return (quads[..., None, :].astype(np.int32) * signs).sum(axis=-1).astype(np.int16)


def _tables(quads: NDArray[np.int16]) -> NDArray[np.int16]:
    """Quads [blocks, 64, 4] -> tables [blocks, 16, 64], as `vlut16` reads them."""
    blocks = len(quads)
    plain = signed_sums(quads).reshape(blocks, 16, 2, 2, 16)  # [.., half, words, entry]
    return plain.transpose(0, 1, 3, 4, 2).reshape(blocks, 16, 64)
