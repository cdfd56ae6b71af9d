"""Planes to tiles of a 32 by 32 matrix unit, by two lookups (T-MAN, arXiv 2511.11248, section 4.2).

First a nibble of a plane, one bit of 4 neighbouring weights, becomes a word with those bits in 4
nibbles; the planes' words together are 4 codes. Then a code becomes a value. A tile has 32 rows of
the matrix by 32 columns; its vectors are of 4 columns (int8) or 2 (float16), row by row, as it is
for a matrix unit that multiplies fours or pairs of neighbours:

    int8     [row tiles, column tiles, 8, 32, 4]     codes less zeros, exactly
    float16  [row tiles, column tiles, 16, 32, 2]    the same times the group's scale, rounded once

Scales of channels and tensors are for the sums to be multiplied by, and so are those of groups for
int8. At 1 bit, where a code less its zero is half of 1 or -1, int8 has twice that. Columns behind a
row's last are 0; rows behind the last are of no use. All is done in integers, also the rounding of
float16, so that every Hexagon makes the same bits as the twin `tiles_of`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cpu.codegen.language import I32, I64, Code, Value
from cpu.kernels.kernel import Arguments, Kernel, Thread, minimum
from edge.errors import UnknownFormat
from edge.formats import Format
from edge.planes import QUAD, STEP, TILE, Quantized
from npu.hvx import vectors
from npu.hvx.isa import VECTOR_BYTES

Kind = Literal["int8", "f16"]

SLOTS = ("codes", "scales", "zeros", "out", "width", "tiles")

# Rows and columns of a tile of the matrix unit.
UNIT = 32

_STEPS = UNIT // STEP
_HALVES = TILE // UNIT

# float16: bits of the fraction, and the sign.
_FRACTION = 10
_SIGN = -0x8000
_INFINITE = 0x7C00


def kinds_of(form: Format) -> tuple[Kind, ...]:
    """What a format's tiles may be.

    With zeros of its groups, an 8-bit code less its zero does not always fit a byte, nor one of 1
    bit, in parts of a code, the product with a scale.
    """
    if form.asymmetric and form.bits in (1, 8):
        return ()
    return ("int8",) if form.bits == 8 else ("int8", "f16")


def tile_bytes(kind: Kind) -> int:
    return UNIT * UNIT * (1 if kind == "int8" else 2)


def dequantize_kernel(form: Format, kind: Kind) -> Kernel:
    """Tiles of 64 rows to tiles of the matrix unit; threads share them. See `SLOTS`.

    What is read behind the arrays is in its contract (`npu.hvx.contracts`). Raises UnknownFormat
    for what `kinds_of` does not have.
    """
    if kind not in kinds_of(form):
        raise UnknownFormat(f"{form} as tiles of {kind}", "use 2 to 4 bits, or symmetric 8 bits")

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        first, last = thread.share(a.integer("tiles"))
        with code.loop(first, last) as tile:
            _Tile(code, a, form, kind, tile).run()

    return Kernel(f"dequantize_{form}_{kind}", SLOTS, body)


@dataclass(frozen=True)
class _Group:
    """What 32 rows have in common in a group: zeros, and the scales' parts, by half of a tile."""

    zeros: tuple[Value, ...] = ()
    fractions: tuple[Value, ...] = ()
    exponents: tuple[Value, ...] = ()
    signs: tuple[Value, ...] = ()


class _Tile:
    """Writes the code for 64 rows."""

    def __init__(self, code: Code, a: Arguments, form: Format, kind: Kind, tile: Value) -> None:
        self.code, self.a, self.form, self.kind, self.tile = code, a, form, kind, tile
        self.width = a.integer("width")
        self.steps = (self.width + (STEP - 1)) // STEP
        self.columns = (self.width + (UNIT - 1)) // UNIT
        grouped = form.granularity == "group"
        self.groups = (self.width + (form.group - 1)) // form.group if grouped else None

    def run(self) -> None:
        whole = self.width // STEP
        with self.code.loop(0, whole) as step:
            self.step(step, cut=False)
        with self.code.loop(whole, self.columns * _STEPS) as step:
            self.step(step, cut=True)

    def step(self, step: Value, *, cut: bool) -> None:
        """8 columns; of a `cut` step some, or all, lie behind the row's last."""
        read = minimum(step, self.steps - 1) if cut else step
        group = self.group(read)
        for quad in range(STEP // QUAD):
            for half, codes in enumerate(self.codes(read, quad)):
                made = self.values(codes, group, half)
                for index, vector in enumerate(made):
                    column = QUAD // len(made) * index + QUAD * quad
                    if cut:
                        left = self.width - (step * STEP + column)
                        vector = vector & self.mask(left, QUAD // len(made))
                    self.store(vector, step, half, quad * len(made) + index)

    def mask(self, left: Value, columns: int) -> Value:
        """A vector's bits of the first `left` columns."""
        count = left.minimum(columns).maximum(0)
        bits = (self.code.constant(I64, 1) << (count * (32 // columns))) - 1
        return vectors.splat(bits.to(I32))

    def store(self, vector: Value, step: Value, half: int, index: int) -> None:
        size = tile_bytes(self.kind)
        per_step = size // _STEPS
        tile = (self.tile * _HALVES + half) * self.columns + step // _STEPS
        place = tile * size + step % _STEPS * per_step + index * VECTOR_BYTES
        vectors.store(vector, self.a.pointer("out"), place)

    # The first lookup.

    def codes(self, step: Value, quad: int) -> list[Value]:
        """4 codes of each row as bytes, of the first 32 rows and of the others."""
        code, pointer = self.code, self.a.pointer("codes")
        if self.form.bits == 8:
            quads = (self.width + (QUAD - 1)) // QUAD
            place = (self.tile * quads + minimum(step * 2 + quad, quads - 1)) * (TILE * QUAD)
            places = (place + half * VECTOR_BYTES for half in range(_HALVES))
            return [vectors.load(code, pointer, place) for place in places]
        step_bytes = TILE * self.form.bits
        aligned = VECTOR_BYTES if step_bytes % VECTOR_BYTES == 0 else None
        place = (self.tile * self.steps + step) * step_bytes
        words: Value | None = None
        for first in range(0, self.form.bits, 2):
            # of 3 planes, the last vector has the second one again; of 1, the next step's
            start = max(0, min(first, self.form.bits - 2))
            planes = code.load(vectors.VECTOR, pointer, place + start * TILE, align=aligned)
            entries = vectors.lookup16(planes >> 4 * quad, _spread_table(code), 0)
            rows = vectors.interleaved(vectors.low(entries), vectors.high(entries), 2)
            both = vectors.low(rows) << start
            if self.form.bits > 1:
                both = both | vectors.high(rows) << start + 1
            words = both if words is None else words | both
        assert words is not None
        ends = (words & 0x0F0F0F0F), (words >> 4 & 0x0F0F0F0F)
        made = vectors.interleaved(*ends, 1)
        return [vectors.low(made), vectors.high(made)]

    # The second one.

    def values(self, codes: Value, group: _Group, half: int) -> list[Value]:
        """Codes [32 rows, 4] to the vectors of a tile."""
        if self.kind == "int8":
            return [self.bytes(codes, group, half)]
        if self.form.asymmetric:
            numbers = vectors.subtract_bytes(codes, group.zeros[half])
            pairs = numbers.cast(vectors.HALVES)
            entries = (pairs << 8).signed_shift(8), pairs.signed_shift(8)
        else:
            table = _table16(self.code, self.numbers())
            pair = vectors.lookup16(codes, table, 0)
            entries = (
                vectors.low(pair).cast(vectors.HALVES),
                vectors.high(pair).cast(vectors.HALVES),
            )
        return [
            self.rounded(vectors.paired_halves(*entries, odd=odd).cast(vectors.HALVES), group, half)
            for odd in (False, True)
        ]

    def bytes(self, codes: Value, group: _Group, half: int) -> Value:
        if self.form.asymmetric:
            return vectors.subtract_bytes(codes, group.zeros[half])
        if self.form.bits == 8:
            return codes ^ -0x7F7F7F80  # 128 less in every byte
        return vectors.lookup8(codes, _table8(self.code, self.numbers()))

    def numbers(self) -> list[int]:
        """What the codes of a symmetric format stand for, and more of the kind up to 16."""
        return [int(_parts(self.form) * (code - self.form.zero)) for code in range(16)]

    def group(self, step: Value) -> _Group:
        """Of the group that a step is in."""
        code, a = self.code, self.a
        index: Value = code.constant(I64, 0)
        place = self.tile
        if self.groups is not None:
            index = step // (self.form.group // STEP)
            place = self.tile * self.groups + index
        zeros: tuple[Value, ...] = ()
        if self.form.asymmetric:
            bytes_ = code.load(vectors.VECTOR, a.pointer("zeros"), place * TILE)
            twice = vectors.low(vectors.interleaved(bytes_, bytes_, 1))
            four = vectors.interleaved(twice, twice, 2)
            zeros = vectors.low(four), vectors.high(four)
        if self.kind == "int8":
            return _Group(zeros)
        if self.groups is None:
            one = code.constant(vectors.HALVES, 1 << _FRACTION)
            power = code.constant(vectors.HALVES, 14)
            none = code.constant(vectors.HALVES, 0)
            return _Group(zeros, (one, one), (power, power), (none, none))
        scales = vectors.load(code, a.pointer("scales"), place * (2 * TILE))
        twice = vectors.interleaved(scales, scales, 2)
        halves = [part(twice).cast(vectors.HALVES) for part in (vectors.low, vectors.high)]
        return _Group(zeros, *zip(*map(_scale_parts, halves), strict=True))

    def rounded(self, numbers: Value, group: _Group, half: int) -> Value:
        """Whole numbers below 16, or halves of 1, times a float16 each, rounded to nearest, ties to
        even.
        """
        zero = self.code.constant(vectors.HALVES, 0)
        sizes = numbers.maximum(zero - numbers)
        product = sizes * group.fractions[half]
        excess = (zero - vectors.leading_zeros_of_halves(product) + (15 - _FRACTION)).maximum(0)
        power = group.exponents[half]
        if _parts(self.form) == 2:
            excess = excess.maximum(zero + 1 - power)
            power = power - 1
        one = zero + 1
        odd = (product >> excess) & excess.minimum(one)
        kept = (product + (((one << excess) - 1) >> 1) + odd) >> excess
        power = (power + excess).minimum(30)
        bits = ((power << _FRACTION) + kept).minimum(_INFINITE)
        sign = (numbers ^ group.signs[half]) & _SIGN
        made = product.equals(0).select(zero, bits) | sign
        return vectors.raw(made)


def _parts(form: Format) -> int:
    """What codes less zeros are multiplied by to be whole numbers."""
    return 2 if form.bits == 1 else 1


def _scale_parts(bits: Value) -> tuple[Value, Value, Value]:
    """float16 to fraction with its leading 1, exponent less 1, and the bits with the sign."""
    power = (bits >> _FRACTION) & 31
    normal = power > 0
    leading = bits.code.constant(vectors.HALVES, 1 << _FRACTION)
    fraction = (bits & ((1 << _FRACTION) - 1)) | normal.select(leading, 0)
    return fraction, normal.select(power - 1, 0), bits


def _spread_table(code: Code) -> Value:
    """A nibble's bits, each the last of a nibble."""
    return _table16(code, [sum((i >> j & 1) << QUAD * j for j in range(QUAD)) for i in range(16)])


def _table16(code: Code, entries: list[int]) -> Value:
    """16 entries of 16 bits where `lookup16` has its table 0."""
    words = [entry & 0xFFFF for entry in entries] + [0] * (UNIT - len(entries))
    return code.constant(vectors.VECTOR, words)


def _table8(code: Code, entries: list[int]) -> Value:
    """16 entries of 8 bits where `lookup8` reads them: every second byte."""
    table = np.zeros(VECTOR_BYTES, np.uint8)
    table[0 : 2 * len(entries) : 2] = np.array(entries, np.int8).view(np.uint8)
    return code.constant(vectors.VECTOR, table.view(np.int32).tolist())


def tiles_of(form: Format, weights: Quantized, kind: Kind) -> NDArray[np.int8 | np.float16]:
    """The twin: tiles of the matrix unit, of all rows in tiles of 64."""
    rows, width = weights.codes.shape
    group = form.group_size(width)
    index = np.arange(width) // group
    zeros = np.float32(form.zero) if weights.zeros is None else weights.zeros[:, index]
    numbers = weights.codes.astype(np.float32) - zeros
    wide = -(-rows // TILE) * TILE - rows, -(-width // UNIT) * UNIT - width
    if kind == "int8":
        values = (_parts(form) * numbers).astype(np.int8)
    elif form.granularity == "group":
        scales = weights.scales.astype(np.float16).astype(np.float32)[:, index]
        values = (numbers * scales).astype(np.float16)
    else:
        values = numbers.astype(np.float16)
    padded = np.pad(values, ((0, wide[0]), (0, wide[1])))
    together = QUAD if kind == "int8" else 2
    parted = padded.reshape(-1, UNIT, padded.shape[1] // UNIT, UNIT // together, together)
    return np.ascontiguousarray(parted.transpose(0, 2, 3, 1, 4))


def rows_of(tiles: NDArray[np.generic], rows: int) -> NDArray[np.generic]:
    """Tiles to rows and columns, with those behind a row's last."""
    return tiles.transpose(0, 3, 1, 2, 4).reshape(tiles.shape[0] * UNIT, -1)[:rows]
