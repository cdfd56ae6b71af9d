"""Linear projections of a few rows by looking up partial sums (T-MAC, arXiv 2407.00088, section 3).

A nibble of a plane says which of 4 neighbouring weights have that bit, so a table of the 16 sums of
4 activations has what the 4 weights add for the plane. The activations are integers of 16 bits
(`activations`), their sums of 18: a table has three digits of 6 bits, the last with the sign, in 16
bytes each. Four digits of one place add up within a byte, and those of a block within 16 bits, so
the products are the same integers as those of `linear`.
"""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial, reduce

import numpy as np
from numpy.typing import NDArray

from cpu.codegen.isa import CodeLayout, Expansion, TableLookup
from cpu.codegen.language import I8, I16, I32, Code, Value, Variable
from cpu.codegen.transpose import transposed_layout, unpack_lanes
from cpu.kernels import linear
from cpu.kernels.blocks import Piece, Shape, concatenated
from cpu.kernels.kernel import Arguments, Kernel, Thread
from edge.formats import Format
from edge.planes import QUAD, STEP, TILE

ENTRIES = 1 << QUAD
DIGIT_BITS, DIGITS = 6, 3
_LAST = DIGITS - 1
_DIGIT_MASK = (1 << DIGIT_BITS) - 1

# Bytes of the tables of a step: of two quads.
STEP_BYTES = STEP // QUAD * DIGITS * ENTRIES

# Steps whose digits are added up as bytes: 4 of 63 at most are 252.
_TOGETHER = 2

# Rows of a vector of sums, and its halves.
_HALF = 8
_HALVES = range(4), range(4, _HALF)

# Sums by digit, by vector.
Counts = list[list[Variable]]

TABLES_SLOTS = ("x", "out", "rows", "width", "padded", "x_stride", "x_private", "out_stride")


def tables_bytes(width: int) -> int:
    """Bytes of the tables of a row."""
    return -(-width // STEP) * STEP_BYTES


def tables_kernel() -> Kernel:
    """Tables uint8 [rows, steps, 2, DIGITS, ENTRIES] of quantized rows. Threads split the steps."""

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        first, last = thread.share((a.integer("width") + (STEP - 1)) // STEP)
        source = code.offset(a.pointer("x"), a.integer("x_private") * thread.index)
        with code.loop(0, a.integer("rows")) as row:
            x = code.offset(source, row * a.integer("x_stride"))
            out = code.offset(a.pointer("out"), row * a.integer("out_stride"))
            with code.loop(first, last) as step:
                _write_step(code, a, x, out, step)

    return Kernel("tables", TABLES_SLOTS, body)


def _write_step(code: Code, a: Arguments, x: Value, out: Value, step: Value) -> None:
    high, low = (
        code.load(I8.of(STEP), x, step * STEP + a.integer("padded") * term).to(I32)
        for term in range(2)
    )
    values = (high << 8) + low
    place = step * STEP_BYTES
    for quad in range(STEP // QUAD):
        sums = _subset_sums(code, [values.lane(quad * QUAD + i) for i in range(QUAD)])
        for digit in range(DIGITS):
            shifted = sums.signed_shift(digit * DIGIT_BITS) if digit else sums
            made = shifted if digit == _LAST else shifted & _DIGIT_MASK
            code.store(made.to(I8), out, place + (quad * DIGITS + digit) * ENTRIES)


def _subset_sums(code: Code, values: Sequence[Value]) -> Value:
    """Sums of 4 values by which of them are taken: bit i of the lane takes value i."""
    kind = I32.of(QUAD)
    a, b, c, d = (value.broadcast(QUAD) for value in values)
    first = (a & code.constant(kind, [0, -1, 0, -1])) + (b & code.constant(kind, [0, 0, -1, -1]))
    second = first + c
    return concatenated([first, second, first + d, second + d])


def tables(values: NDArray[np.int16]) -> NDArray[np.uint8]:
    """The twin: of quantized values [rows, width], uint8 [rows, steps, 2, DIGITS, ENTRIES]."""
    rows, width = values.shape
    steps = -(-width // STEP)
    padded = np.pad(values.astype(np.int32), ((0, 0), (0, steps * STEP - width)))
    taken = (np.arange(ENTRIES) >> np.arange(QUAD)[:, None]) & 1  # [4, 16]
    sums = padded.reshape(rows, steps, STEP // QUAD, QUAD) @ taken
    digits = [sums & _DIGIT_MASK, (sums >> DIGIT_BITS) & _DIGIT_MASK, sums >> (2 * DIGIT_BITS)]
    return np.stack(digits, axis=3).astype(np.uint8)


SLOTS = (*linear.SLOTS, "tables", "tables_stride")


def lookup_kernel(form: Format) -> Kernel:
    """The same as `linear.linear_kernel`, of quantized rows and their tables, up to 4 bits.

    The twin is `linear.linear`: the integers are the same.
    """
    shape = Shape(form)

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        first, last = thread.share(a.integer("tiles"))
        tables = code.isa.tables
        assert tables is not None
        kind = _PairedTile if tables.add_pairs else _LookupTile
        with code.loop(first, last) as tile:
            kind(code, a, thread, tile, shape, tables).run()

    return Kernel(f"lookup_{form}", SLOTS, body)


# Rows at a time: their counters of a plane are 12 of the 32 registers.
_ROWS = 32


def _layout(bits: int) -> CodeLayout:
    """Rows in order."""
    del bits
    rows = tuple(tuple(range(first, first + 4)) for first in range(0, _ROWS, 4))
    return CodeLayout(
        slots=(), rows=rows, factors=(1,) * len(rows), alternating=False, row_count=_ROWS
    )


def _nibbles(code: Code, planes: Sequence[Sequence[Value]]) -> Iterator[Value]:
    """By plane, by vector of rows: the low and the high nibbles."""
    del code
    for vectors in planes:
        for vector in vectors:
            yield vector & 0xF
            yield vector >> 4


class _TableTile(linear.DecodeTile):
    """Writes the code for 64 outputs of one tile, row after row, each with tables of its own."""

    def __init__(
        self,
        code: Code,
        a: Arguments,
        thread: Thread,
        tile: Value,
        shape: Shape,
        how: TableLookup,
    ) -> None:
        super().__init__(code, a, thread, tile, shape, self.expansion(code))
        self.how = how
        # digits of both quads of every step, each plane twice the one before
        assert shape.steps * 2 * _DIGIT_MASK * ((1 << shape.form.bits) - 1) < 2**15

    @staticmethod
    @abstractmethod
    def expansion(code: Code) -> Expansion:
        """Nibbles as they are looked up, and the rows of what is found."""

    def one_row(self, row: Value) -> None:
        offset = row * self.a.integer("tables_stride")
        self.tables = self.code.offset(self.a.pointer("tables"), offset)
        super().one_row(row)


class _LookupTile(_TableTile):
    """Rows in order, by tables of 16 bytes.

    Of a block, plane after plane is counted in the same counters, which double in between: those of
    two planes would leave room for half the rows, and each table would be loaded twice as often.
    """

    @staticmethod
    def expansion(code: Code) -> Expansion:
        del code
        return Expansion(_layout, _nibbles)

    def one_block(
        self, x: Value, block: Value, first: Value, last: Value | None, sums: list[list[Variable]]
    ) -> None:
        self.prefetch_scales(block)
        together = _TOGETHER if last is None else 1
        end = first + self.shape.steps if last is None else last
        for part, totals in zip(self.parts, sums, strict=True):
            made = self.start(x, block, self.slots)[-1]
            counts = self.no_counts()
            for plane in reversed(range(self.form.bits)):
                if plane < self.form.bits - 1:
                    _double(counts)
                with self.code.loop(first, end, together) as index:
                    self.look_up([index + i for i in range(together)], plane, part, counts)
            _add_digits(self.how, made, counts)
            scales = self.weight_scales(block, part, self.slots)
            self.add_scaled(x, Piece(block, part, self.slots), [made], scales, totals)

    def no_counts(self) -> Counts:
        nothing = self.code.constant(I16.of(_HALF), 0)
        return [[self.code.variable(nothing) for _ in range(_ROWS // _HALF)] for _ in range(DIGITS)]

    def look_up(self, steps: Sequence[Value], plane: int, part: int, counts: Counts) -> None:
        """Add what some steps' nibbles of a plane find, digit by digit."""
        made = [self.nibbles(step, plane, part) for step in steps]
        quads = [nibbles[half::2] for nibbles in made for half in range(2)]
        for digit, counters in enumerate(counts):
            held = [
                self.code.load(I8.of(ENTRIES), self.tables, step * STEP_BYTES + place)
                for step in steps
                for place in (digit * ENTRIES, (DIGITS + digit) * ENTRIES)
            ]
            for place in range(len(counters) // 2):
                found = [
                    self.how.lookup(self.code, table, nibbles[place])
                    for table, nibbles in zip(held, quads, strict=True)
                ]
                _count(found, counters[2 * place : 2 * place + 2], signed=digit == _LAST)

    def nibbles(self, step: Value, plane: int, part: int) -> list[Value]:
        """Of a plane's vectors, the low and the high ones."""
        offset, size = step * self.shape.step_bytes + plane * TILE, self.code.isa.vector_bytes
        if part == 0:
            ahead = offset + self.code.isa.reading.ahead_bytes
            self.prefetch_lines(self.codes, ahead, TILE)
        vectors = [
            self.code.load(I8.of(size), self.codes, offset + first)
            for first in range(part, part + _ROWS, size)
        ]
        return list(self.expand(self.code, [vectors]))


def _count(found: Sequence[Value], halves: Sequence[Variable], *, signed: bool) -> None:
    """Add digits of one place, of 16 rows, as bytes first."""
    total = found[0]
    for value in found[1:]:
        total = total + value
    for half, counter in enumerate(halves):
        rows = total.shuffle(range(_HALF * half, _HALF * (half + 1)))
        counter.set(counter.get() + rows.to(I16, unsigned=not signed))


def _double(counts: Counts) -> None:
    """Before a plane whose bits are worth half: at most 15 * 32 * 63 with all of 4 planes."""
    for counters in counts:
        for counter in counters:
            counter.set(counter.get() << 1)


def _add_digits(how: TableLookup, low: Sequence[Variable], counts: Counts) -> None:
    """Add digits in vectors of 8 rows to vectors of 4."""
    assert how.multiply_add is not None
    for digit, counters in enumerate(counts):
        halves = [counter.get().shuffle(rows) for counter in counters for rows in _HALVES]
        for held, values in zip(low, halves, strict=True):
            made = held.get()
            if digit == 0:
                held.set(made + values.to(I32))
            else:
                factor = 1 << (DIGIT_BITS * digit)
                held.set(how.multiply_add(made.code, made, values, factor))


def _paired_nibbles(code: Code, planes: Sequence[Sequence[Value]]) -> Iterator[Value]:
    """Of two planes side by side: by pair, by half of the rows, the low and the high nibbles."""
    size = code.isa.vector_bytes
    for first in range(0, len(planes), 2):
        (low,), (high,) = planes[first], planes[min(first + 1, len(planes) - 1)]
        for half in range(2):
            yield from _nibbles(code, [[low.shuffle(unpack_lanes(size, 1, half), high)]])


class _PairedTile(_TableTile):
    """The same with rows of two planes as neighbouring bytes, which are joined as they are widened.

    So a digit has two vectors of sums, of half the rows each, however many planes there are. A last
    plane without a second is there twice, and the copy worth nothing.
    """

    @staticmethod
    def expansion(code: Code) -> Expansion:
        size = code.isa.vector_bytes
        return Expansion(lambda _: transposed_layout(size, QUAD), _paired_nibbles)

    def one_block(
        self, x: Value, block: Value, first: Value, last: Value | None, sums: list[list[Variable]]
    ) -> None:
        self.prefetch_scales(block)
        together, end = (1, last) if last is not None else (_TOGETHER, first + self.shape.steps)
        nothing = self.code.constant(I16.of(self.code.isa.vector_bytes // 2), 0)
        for part, totals in zip(self.parts, sums, strict=True):
            counts = [[self.code.variable(nothing) for _ in range(2)] for _ in range(DIGITS)]
            with self.code.loop(first, end, together) as index:
                self.look_up([index + i for i in range(together)], part, counts)
            made = self.start(x, block, self.slots)[-1]
            self.add_digits(made, counts)
            scales = self.weight_scales(block, part, self.slots)
            self.add_scaled(x, Piece(block, part, self.slots), [made], scales, totals)

    def look_up(self, steps: Sequence[Value], part: int, counts: list[list[Variable]]) -> None:
        """Add what some steps' nibbles find, digit by digit, by halves of the rows."""
        if part == 0:
            for step in steps:
                self.prefetch(step)
        # by quad: the nibbles of each pair's halves
        made = [list(self.vectors(step, part)) for step in steps]
        quads = [nibbles[half::2] for nibbles in made for half in range(2)]
        for digit, halves in enumerate(counts):
            held = [
                self.table(step, place)
                for step in steps
                for place in (digit * ENTRIES, (DIGITS + digit) * ENTRIES)
            ]
            for place, of_quads in enumerate(zip(*quads, strict=True)):
                found = map(partial(self.how.lookup, self.code), held, of_quads)
                low, half = 2 * (place // 2), halves[place % 2]
                worths = (1 << low, 2 << low if low + 1 < self.form.bits else 0)
                together = reduce(operator.add, found)
                signed = digit == _LAST
                half.set(self.add_pairs(half.get(), together, worths, signed=signed))

    def add_pairs(
        self, sums: Value, found: Value, worths: tuple[int, int], *, signed: bool
    ) -> Value:
        assert self.how.add_pairs is not None
        return self.how.add_pairs(self.code, sums, found, worths, signed=signed)

    def table(self, step: Value, place: int) -> Value:
        """A table in every 16 bytes of a vector."""
        held = self.code.load(I8.of(ENTRIES), self.tables, step * STEP_BYTES + place)
        return held.shuffle(list(range(ENTRIES)) * (self.code.isa.vector_bytes // ENTRIES))

    def add_digits(self, made: Sequence[Variable], counts: list[list[Variable]]) -> None:
        """Sums of 16 bits become twice as many vectors of 32, each of 4 rows of every 8."""
        for number, total in enumerate(made):
            half, quad = divmod(number, 2)
            first, second, last = (halves[half].get() for halves in counts)
            for a, b, worths in (
                (first, second, (1, 1 << DIGIT_BITS)),
                (last, last, (1 << _LAST * DIGIT_BITS, 0)),
            ):
                pairs = _zipped(a, b, quad)
                total.set(self.add_pairs(total.get(), pairs, worths, signed=True))


def _zipped(a: Value, b: Value, half: int) -> Value:
    """Lanes of 16 bits by turns, of the low or the high half of every 16 bytes."""
    kind = I8.of(a.type.byte_count)
    lanes = unpack_lanes(kind.lanes, 2, half)
    return a.cast(kind).shuffle(lanes, b.cast(kind)).cast(a.type)
