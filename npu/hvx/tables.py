"""Activations as lookup tables: 4 neighbours make 16 signed sums; a plane's nibble picks one.

In blocks of 256 along the row, activations are rounded to integers of a scale of their own, such
that no sum of 4 leaves 16 bits. Entry i of a quad's table is the sum of its activations, each with
a plus where its bit of i is 1 and a minus where it is 0; so entry 15 - i is minus entry i. A weight
of b bits, code - zero, is half of (its planes' signs, weighted by powers of two, plus 2^b - 1 - 2
zero), which is where the sums of the activations come in (T-MAN, arXiv 2511.11248, section 4).

A vector holds the tables of 16 activations as `vlut16` reads them (see `vectors.lookup16`). Blocks'
scales are told as ratios to the largest one, so that integers of all blocks can be added.

All is integers but one division a block: float32's bits are shifted to whole numbers of a unit that
the row has in common, 2^-23 of the power of two at or below its largest magnitude, cut there. The
largest sum of 4 such magnitudes is a block's peak; whole numbers over their peak are the integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from cpu.codegen.language import F32, I8, I32, I64, Code, Value
from cpu.kernels.kernel import Arguments, Kernel, Thread, minimum
from npu.hvx import vectors
from npu.hvx.isa import VECTOR_BYTES

# Activations that share a scale, and whose tables fill 16 vectors.
BLOCK = 256
QUAD = 4
TABLE_BYTES = BLOCK // QUAD * 16 * 2

# The largest sum of 4 magnitudes: rounding may add half of each, and the high byte of a value, as
# 8-bit weights take it, is at most 127.
PEAK = 127 * 256

# Rows whose sums stay below it are zeros: the inverse of their scale would be infinite.
LEAST = 1e-30

# A block's scale relative to the largest is a fraction of this. Sums of a row's blocks must stay in
# 32 bits, so it is less for long rows of wide codes (`ratio_one`).
RATIO_ONE = 32767

# float32: bits of the fraction, what is taken from an exponent, and the least exponent of a row's
# largest magnitude: whole numbers of its unit are 0 where a float is.
_FRACTION, _BIAS, _LEAST_EXPONENT = 23, 127, 24

# A block's whole numbers, shifted until the peak has 31 bits, times PEAK * 2^46 over that shifted
# peak, by 2^31 and by 2^15: the first two fit 32 bits.
_INVERSE = float(PEAK << 46)
_LAST_SHIFT = 15

_LANES = VECTOR_BYTES // vectors.WORD_BYTES
_VECTORS = BLOCK // _LANES
_SIZE = 0x7FFFFFFF

QUANTIZE_SLOTS = ("x", "values", "peaks", "sums", "width", "groups")


@dataclass(frozen=True)
class Activations:
    """A row of activations as the kernels take it; what `activations` makes, and the kernels must.

    values int16 [blocks * 256], peaks float32 [blocks], sums int32 [groups], tables int16 [blocks,
    16, 64]; and what the products make of the peaks: ratios int32 [blocks].
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
    """x float32 [width] -> values, peaks and sums of groups, each in all of a vector.

    Threads take blocks. x has room for whole vectors, `values` for whole blocks; `groups` is how
    many a block has: 1, 2, 4 or 8.
    """

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        quantizer = _Quantizer(code, a)
        first, last = thread.share(quantizer.blocks)
        with code.when(first < last):
            quantizer.run(first, last)

    return Kernel("hvx_quantize", QUANTIZE_SLOTS, body)


class _Quantizer:
    """Writes the code: eight vectors of 32 activations are a block."""

    def __init__(self, code: Code, a: Arguments) -> None:
        self.code, self.a = code, a
        self.width = a.integer("width")
        self.blocks = (self.width + (BLOCK - 1)) // BLOCK

    def run(self, first: Value, last: Value) -> None:
        exponents = self.exponents()
        power = vectors.first_word(exponents) - _FRACTION
        unit = (power << _FRACTION).cast(F32)
        for block, words in self.each_block(first, last):
            self.round(block, words, exponents, unit)

    def each_block(self, first: Value, last: Value) -> Iterator[tuple[Value, list[Value]]]:
        """Write code for whole blocks, then for one that the row ends in, with its words."""
        whole = minimum(self.width // BLOCK, last)
        with self.code.loop(first, whole) as block:
            start = self.code.offset(self.a.pointer("x"), block * (4 * BLOCK))
            places = range(0, 4 * BLOCK, VECTOR_BYTES)
            yield block, [vectors.load(self.code, start, place) for place in places]
        with self.code.when(whole < last):
            yield whole, [self.cut(whole * _VECTORS + i) for i in range(_VECTORS)]

    def cut(self, index: Value) -> Value:
        """A vector of x with zeros behind the row's end, where none is read."""
        code = self.code
        held = minimum(index, (self.width - 1) // _LANES)
        words = vectors.load(code, self.a.pointer("x"), held * VECTOR_BYTES)
        left = vectors.splat((self.width - index * _LANES).to(I32))
        return (code.constant(vectors.VECTOR, range(_LANES)) < left).select(words, 0)

    def exponents(self) -> Value:
        """The exponent of the row's largest magnitude, in every word."""
        none = self.code.constant(vectors.VECTOR, _LEAST_EXPONENT << _FRACTION)
        most = self.code.variable(none)
        for _, words in self.each_block(self.code.constant(I64, 0), self.blocks):
            most.set(reduce(Value.maximum, [word & _SIZE for word in words], most.get()))
        return vectors.largest(most.get()) >> _FRACTION

    def round(self, block: Value, words: list[Value], exponents: Value, unit: Value) -> None:
        code, a = self.code, self.a
        whole = [_whole_number(word, exponents) for word in words]
        pairs = _paired(_paired(whole))
        peak = vectors.first_word(vectors.largest(reduce(Value.maximum, pairs)))
        code.store(peak.to(F32) * unit, a.pointer("peaks"), block * 4)
        size = peak.maximum(1)
        shift = vectors.leading_zeros(size) - 1
        inverse = code.constant(F32, _INVERSE) / (size << shift).to(F32)
        inverses = vectors.splat(inverse.to(I32))
        scaled = [vectors.times_fractions(each << shift, inverses) for each in whole]
        values = []
        for index in range(0, _VECTORS, 2):
            sizes = vectors.narrowed(scaled[index], scaled[index + 1], _LAST_SHIFT)
            signs = vectors.odd_halves(words[index], words[index + 1]).signed_shift(15)
            values.append((sizes ^ signs) - signs)
            place = block * (2 * BLOCK) + index // 2 * VECTOR_BYTES
            vectors.store(values[-1], a.pointer("values"), place)
        self.sum_groups(block, values)

    def sum_groups(self, block: Value, values: list[Value]) -> None:
        code, groups = self.code, self.a.integer("groups")
        (sums,) = _paired(_paired([vectors.dot_ones(each) for each in values]))
        for _ in range(2):
            sums = vectors.paired(sums, sums)
        held = code.variable(sums)  # of eights of a block in the first words
        fewer = vectors.leading_zeros(groups.to(I32)) - 28
        with code.loop(0, fewer.to(I64)):
            held.set(vectors.paired(held.get(), held.get()))
        with code.loop(0, groups) as group:
            total = vectors.rotated(held.get(), (group * 4).to(I32))
            place = (block * groups + group) * VECTOR_BYTES
            vectors.store(total.shuffle([0] * _LANES), self.a.pointer("sums"), place)


def _paired(words: list[Value]) -> list[Value]:
    """Sums of neighbours, in half as many vectors."""
    return [vectors.paired(*both) for both in zip(words[::2], words[1::2], strict=True)]


def _whole_number(word: Value, exponents: Value) -> Value:
    """Magnitudes of float32 as whole numbers of the unit that a row's largest exponent gives."""
    size = word & _SIZE
    shift = (exponents - (size >> _FRACTION)).minimum(31)
    return (size & ((1 << _FRACTION) - 1) | (1 << _FRACTION)) >> shift


def tables_kernel() -> Kernel:
    """values int16 [blocks * 256] -> tables [blocks, 16, 64]; threads take blocks."""

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        first, last = thread.share(a.integer("blocks"))
        with code.loop(first, last) as block:
            values = _load_values(code, a, block)
            for index, made in enumerate(_turned(_entries(values))):
                place = block * TABLE_BYTES + index * VECTOR_BYTES
                vectors.store(made, a.pointer("tables"), place)

    return Kernel("hvx_tables", ("values", "tables", "blocks"), body)


def _load_values(code: Code, a: Arguments, block: Value) -> list[Value]:
    start = code.offset(a.pointer("values"), block * (2 * BLOCK))
    return [vectors.load(code, start, place) for place in range(0, 2 * BLOCK, VECTOR_BYTES)]


def _entries(values: list[Value]) -> list[Value]:
    """Entry i of all quads of a block, in vector i: even quads, then odd ones."""
    first, last = (vectors.dealt(values[half], values[half + 1], 2) for half in (0, 2))
    places = [vectors.dealt(part(first), part(last), 2) for part in (vectors.low, vectors.high)]
    quads = [
        vectors.even_halves_first(part(pair)).cast(vectors.HALVES)
        for part in (vectors.low, vectors.high)
        for pair in places
    ]
    low, high = (_signed_pairs(quads[half], quads[half + 1]) for half in (0, 2))
    return [low[entry % QUAD] + high[entry // QUAD] for entry in range(16)]


def _signed_pairs(a: Value, b: Value) -> list[Value]:
    """-a - b, a - b, b - a, a + b."""
    both = a + b
    return [-both, a - b, b - a, both]


def _turned(entries: list[Value]) -> list[Value]:
    """Entries of quads to quads of entries: each bit of one's place becomes one of the other's."""
    held = list(entries)
    for bit in range(4):
        for one in (index for index in range(16) if not index >> bit & 1):
            other = one | 1 << bit
            pair = vectors.exchanged(held[one], held[other], 4 << bit)
            held[one], held[other] = vectors.low(pair), vectors.high(pair)
    return held


def split_kernel() -> Kernel:
    """values int16 [blocks * 256] -> bytes: of 4 values 4 high bytes, then 4 low ones, all signed.

    Threads take blocks.
    """
    byte_count = 2 * QUAD
    order = [
        start + 2 * place + half
        for start in range(0, VECTOR_BYTES, byte_count)
        for half in (1, 0)
        for place in range(QUAD)
    ]

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        first, last = thread.share(a.integer("blocks"))
        with code.loop(first, last) as block:
            for index, value in enumerate(_load_values(code, a, block)):
                halves = value.cast(vectors.HALVES)
                parted = (halves & 0xFF) | ((halves + 128) & -0x100)
                made = parted.cast(I8.of(VECTOR_BYTES)).shuffle(order)
                place = block * (2 * BLOCK) + index * VECTOR_BYTES
                vectors.store(made, a.pointer("bytes"), place)

    return Kernel("hvx_split", ("values", "bytes", "blocks"), body)


class Ratios:
    """Writes the code that makes ratios of a row's peaks."""

    def __init__(self, code: Code, peaks: Value, blocks: Value, one: Value) -> None:
        self.code, self.peaks = code, peaks
        largest = code.variable(code.constant(F32, 0.0))
        with code.loop(0, blocks) as block:
            largest.set(largest.get().maximum(code.load(F32, peaks, block * 4)))
        self.largest = largest.get()
        inverse = one.to(F32) / self.largest.maximum(LEAST)
        self.share = (self.largest > LEAST).select(inverse, 0.0)

    def of(self, block: Value) -> Value:
        """A block's, in both halves of a word."""
        scaled = self.code.load(F32, self.peaks, block * 4) * self.share
        ratio = self.code.intrinsic("llvm.hexagon.F2.conv.sf2w", I32, scaled)  # ties to even
        return ratio | (ratio << 16)


def activations(x: NDArray[np.float32], group: int, one: int) -> Activations:
    """The twin of the kernels, for one row x float32 [width]."""
    blocks = block_count(len(x))
    padded = np.pad(x, (0, blocks * BLOCK - len(x))).astype(np.float32)
    sizes, negative = np.abs(padded), np.signbit(padded)
    power = max(int(sizes.max().view(np.int32)) >> _FRACTION, _LEAST_EXPONENT) - _FRACTION - _BIAS
    whole = np.trunc(np.ldexp(sizes.astype(np.float64), -power)).astype(np.int64)
    sums = whole.reshape(blocks, BLOCK // QUAD, QUAD).sum(axis=2).max(axis=1)
    peaks = sums.astype(np.float32) * np.float32(2.0**power)
    shift = 31 - np.frexp(np.maximum(sums, 1).astype(np.float64))[1].astype(np.int64)
    inverse = np.float32(_INVERSE) / (np.maximum(sums, 1) << shift).astype(np.float32)
    scaled = whole.reshape(blocks, BLOCK) << shift[:, None]
    scaled = _times_fractions(scaled, inverse.astype(np.int64)[:, None]).reshape(-1)
    rounded = (scaled + (1 << _LAST_SHIFT >> 1)) >> _LAST_SHIFT
    values = np.where(negative, -rounded, rounded).astype(np.int16)
    return Activations(
        values=values,
        peaks=peaks,
        ratios=_ratios(peaks, one),
        sums=values.astype(np.int32).reshape(-1, group).sum(axis=1, dtype=np.int32),
        tables=_tables(values.reshape(blocks, -1, QUAD)),
    )


def _times_fractions(words: NDArray[np.int64], fractions: NDArray[np.int64]) -> NDArray[np.int64]:
    """As `vectors.times_fractions`, which cuts what the fractions' low halves make."""
    made: NDArray[np.int64] = (words * (fractions & 0xFFFF) >> 16) + words * (fractions >> 16)
    return (made + (1 << 14)) >> 15


def _ratios(peaks: NDArray[np.float32], one: int) -> NDArray[np.int32]:
    largest = peaks.max()
    share = np.float32(one) / largest if largest > np.float32(LEAST) else np.float32(0)
    ratios = np.rint(peaks * share).astype(np.int32)
    return ratios | ratios << 16


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
