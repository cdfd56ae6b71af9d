"""Table-lookup matrix-vector product over the bundle's own planes: every format, every shape.

For a group of weights, the low nibbles of a plane's bytes look up the tables of one quad of
activations, the high nibbles those of the next, and the entries are added in 32 bits. The planes'
sums, weighted by powers of two, with a symmetric format's zero, are twice the dot product of codes
and activations, exactly. Groups are scaled by fractions of 32768; what an asymmetric format's zeros
add to a block comes beside them (`zeros`); blocks of 256 activations are scaled by theirs. All are
rounded and added in 32 bits; so a row's result is an integer that is the same on every Hexagon, and
one float multiplication at the end makes a number of it.

This kernel leaves instructions to LLVM to schedule. For whole blocks of 1 to 4 bits there are
scheduled loops (`inner`); both are held to the twin `lookup`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpu.codegen.language import F32, I32, I64, Code, Type, Value, Variable
from cpu.kernels.kernel import Arguments, Kernel, Thread, minimum
from edge.formats import Format
from edge.planes import QUAD, STEP, TILE, Quantized
from npu.hvx import inner, tables, vectors, zeros
from npu.hvx.isa import VECTOR_BYTES
from npu.hvx.tables import BLOCK, TABLE_BYTES
from npu.hvx.turn import tiles_of
from npu.hvx.weights import BYTE_SHIFT, RowScales, group_of, offset_of

SLOTS = (
    *("tables", "bytes", "sums", "peaks"),
    *("codes", "steps", "offsets", "units", "bias", "out", "sums_out"),
    *("width", "tiles", "one", "factor", "scratch"),
)

# What a thread needs of `scratch`: a vector, and the arguments of a scheduled loop.
SCRATCH_BYTES = 512

# Quads of a turn of bytes, and steps of one of planes: as many as a group of 32 has.
_TOGETHER = 8
_STEPS_TOGETHER = 4

# Rows that become numbers together where they do so one by one.
_LOADED = 8

_HALF = TILE // 2
_STEPS = BLOCK // STEP


@dataclass(frozen=True)
class _Shape:
    form: Format

    @property
    def group(self) -> int:
        return group_of(self.form)

    @property
    def groups(self) -> int:
        """Of a block."""
        return BLOCK // self.group

    @property
    def scaled(self) -> bool:
        return self.form.granularity == "group"

    @property
    def step_bytes(self) -> int:
        """Bytes of a step of one tile."""
        return TILE * (self.form.bits if self.form.bits < 8 else STEP)


def lookup_kernel(form: Format) -> Kernel:
    """out float32 [rows] of one row of activations, tiles of 64 rows; see `SLOTS`.

    `sums_out` gets the integers, int32 [tiles, 64], even rows of a tile first; `factor` is what
    they are multiplied by beside a row's unit and the largest peak; `one` is `tables.ratio_one`.
    """

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        first, last = thread.share(a.integer("tiles"))
        _clear(code, a, first, last)
        blocks = (a.integer("width") + (BLOCK - 1)) // BLOCK
        ratios = tables.Ratios(code, a.pointer("peaks"), blocks, a.integer("one"))
        whole = _whole_blocks(code, a, form)
        by_turns = _Blocks(code, a, _Shape(form), thread)
        turns = (last - first) // tiles_of(form)
        with code.when(turns > 0), code.loop(0, whole) as block:
            by_turns.run(block, first, turns, ratios)
        cut_turns = _cut_turns(a, form, first, last)
        with code.when(cut_turns > 0):
            by_turns.run(whole, first, cut_turns, ratios)
        alone, cut_alone = (first + each * tiles_of(form) for each in (turns, cut_turns))
        with code.loop(first, last) as tile:
            done = whole
            if inner.covers(form):
                done = (tile < cut_alone).select(whole + 1, (tile < alone).select(whole, 0))
            _Tile(code, a, _Shape(form), tile).run(done, ratios)
        finish(code, a, first, last, ratios.largest)

    return Kernel(f"lookup_{form}", SLOTS, body)


def _clear(code: Code, a: Arguments, first: Value, last: Value) -> None:
    with code.loop(first * 2, last * 2) as half:
        zero = code.constant(vectors.VECTOR, 0)
        vectors.store(zero, a.pointer("sums_out"), half * VECTOR_BYTES)


def _whole_blocks(code: Code, a: Arguments, form: Format) -> Value:
    """How many blocks a scheduled loop takes: its codes must be whole vectors."""
    if not inner.covers(form):
        return code.constant(I64, 0)
    return _aligned(a, form).select(a.integer("width") // BLOCK, 0)


def _cut_turns(a: Arguments, form: Format, first: Value, last: Value) -> Value:
    """Turns of a scheduled loop for a block in which rows end, where that is half of one or more.

    What it reads behind a row's end is the next tile's, so that the last tile has none of it; the
    tables are zeros there.
    """
    if not inner.covers(form):
        return first.code.constant(I64, 0)
    tiles = (minimum(last, a.integer("tiles") - 1) - first).maximum(0)
    long = (a.integer("width") & (BLOCK - 1)) >= BLOCK // 2
    return long.select(_aligned(a, form).select(tiles // tiles_of(form), 0), 0)


def _aligned(a: Arguments, form: Format) -> Value:
    """Whether the codes of all tiles and blocks are whole vectors."""
    step_bytes = _Shape(form).step_bytes
    tile_bytes = (a.integer("width") + (STEP - 1)) // STEP * step_bytes
    apart = _address(a.pointer("codes")) | tile_bytes.to(I32)
    return (apart & (VECTOR_BYTES - 1)).equals(0)


def _address(pointer: Value) -> Value:
    """A pointer as a number."""
    code = pointer.code
    return Value(code, I32, code.builder.ptrtoint(pointer.ir, I32.ir))


class _Blocks:
    """Writes the call of a scheduled loop: a block of 256 activations with the tiles of turns."""

    def __init__(self, code: Code, a: Arguments, shape: _Shape, thread: Thread) -> None:
        self.code, self.a, self.shape = code, a, shape
        self.scratch = code.offset(a.pointer("scratch"), thread.index * SCRATCH_BYTES)
        self.words = code.offset(self.scratch, VECTOR_BYTES)

    def run(self, block: Value, first: Value, turns: Value, ratios: tables.Ratios) -> None:
        if not inner.covers(self.shape.form):
            return
        code, a, shape = self.code, self.a, self.shape
        steps = (a.integer("width") + (STEP - 1)) // STEP
        code_stride = steps * shape.step_bytes
        groups = (a.integer("width") + (shape.group - 1)) // shape.group
        scale_stride = groups * (2 * TILE) if shape.scaled else code.constant(I64, 2 * TILE)
        group = block * shape.groups
        scale = first * scale_stride + (group * (2 * TILE) if shape.scaled else 0)
        offset_stride = _offset_bytes(shape, groups)
        offset = first * offset_stride
        if shape.scaled:
            offset = offset + block * (zeros.pairs_of(shape.form) * zeros.PAIR_BYTES)
        places = {
            "tables": block * TABLE_BYTES,
            "codes": first * code_stride + block * (_STEPS * shape.step_bytes),
            "steps": scale,
            "offsets": offset,
            "sums": group * VECTOR_BYTES,
            "sums_out": first * (4 * TILE),
        }
        # the loop itself fetches its next tile
        behind = places["codes"] + _STEPS * shape.step_bytes
        _fetch_block(code.offset(a.pointer("codes"), behind), shape)
        values = [
            *(_address(code.offset(a.pointer(name), place)) for name, place in places.items()),
            _address(self.scratch),
            ratios.of(block),
            *(value.to(I32) for value in (turns, code_stride, scale_stride, offset_stride)),
        ]
        if shape.form.asymmetric:
            sums = code.offset(a.pointer("sums"), group * VECTOR_BYTES)
            pairs, shift = zeros.sum_pairs(code, shape.form, sums)
            values += [shift, *pairs]
        for place, value in enumerate(values):
            code.store(value, self.words, 4 * place)
        code.call_named(inner.name_of(shape.form), self.words)


def _fetch_block(codes: Value, shape: _Shape) -> None:
    """Ask for a block's codes of one tile; beyond the end of memory nothing comes of it."""
    width = codes.code.constant(I64, _STEPS * shape.step_bytes)
    vectors.fetch(codes.code, codes, width=width, height=width.code.constant(I64, 1), stride=width)


def _offset_bytes(shape: _Shape, groups: Value) -> Value:
    """Bytes of a tile's offsets."""
    pairs = (groups + 1) >> 1 if shape.scaled else groups.code.constant(I64, 1)
    return pairs * zeros.PAIR_BYTES


class _Tile:
    """Writes the code for a tile of 64 rows. Sums are two vectors: of even and of odd rows."""

    def __init__(self, code: Code, a: Arguments, shape: _Shape, tile: Value) -> None:
        self.code, self.a, self.shape, self.form = code, a, shape, shape.form
        width = a.integer("width")
        per_step = QUAD if self.form.bits == 8 else STEP
        self.steps = (width + (per_step - 1)) // per_step
        self.step_bytes = shape.step_bytes * per_step // STEP
        self.block_steps = BLOCK // per_step
        self.codes = code.offset(a.pointer("codes"), tile * self.steps * self.step_bytes)
        granted = (width + (shape.group - 1)) // shape.group
        self.groups = granted if shape.scaled else code.constant(I64, 1)
        self.blocks = (width + (BLOCK - 1)) // BLOCK
        self.tile = tile

    def run(self, start: Value, ratios: tables.Ratios) -> None:
        """Add the blocks from `start` on to the tile's totals."""
        code, a = self.code, self.a
        zero = code.constant(vectors.VECTOR, 0)
        places = [(self.tile * 2 + half) * VECTOR_BYTES for half in range(2)]
        totals = [
            code.variable(vectors.load(code, a.pointer("sums_out"), place)) for place in places
        ]
        with code.loop(start, self.blocks) as block:
            block_bytes = _STEPS * self.shape.step_bytes
            _fetch_block(code.offset(self.codes, (block + 1) * block_bytes), self.shape)
            sums = [code.variable(zero) for _ in range(2)]
            for index in range(self.shape.groups):
                group = block * self.shape.groups + index
                first = group * (self.block_steps // self.shape.groups)
                with code.when(first < self.steps):
                    self.add_group(group, first, sums)
            if self.form.asymmetric:
                self.add_zeros(block, sums)
            ratio = vectors.splat(ratios.of(block))
            for total, made in zip(totals, sums, strict=True):
                total.set(total.get() + vectors.scaled(made.get(), ratio))
        for place, total in zip(places, totals, strict=True):
            vectors.store(total.get(), a.pointer("sums_out"), place)

    def add_group(self, group: Value, first: Value, sums: list[Variable]) -> None:
        """Add a group's products, times its scale, to the sums."""
        code = self.code
        last = minimum(first + self.block_steps // self.shape.groups, self.steps)
        products = self.bytes(first, last) if self.form.bits == 8 else self.planes(first, last)
        products = self.with_zero(products, group)
        if self.form.bits == 8:
            products = [product.signed_shift(BYTE_SHIFT) for product in products]
        if self.shape.scaled:
            place = (self.tile * self.groups + group) * (2 * TILE)
            steps = vectors.load(code, self.a.pointer("steps"), place)
            factors = (vectors.even_halves(steps), steps)
            products = [vectors.scaled(p, f) for p, f in zip(products, factors, strict=True)]
        for total, product in zip(sums, products, strict=True):
            total.set(total.get() + product)

    # 1 to 4 bits: tables.

    def planes(self, first: Value, last: Value) -> list[Value]:
        """The planes' sums of a group, weighted by powers of two."""
        code, zero = self.code, self.code.constant(vectors.PAIR, 0)
        places = _plane_pairs(self.form.bits)
        sums = [[code.variable(zero) for _ in range(2)] for _ in places]
        whole = last - ((last - first) & (_STEPS_TOGETHER - 1))
        for start, end, together in ((first, whole, _STEPS_TOGETHER), (whole, last, 1)):
            with code.loop(start, end, together) as step:
                for index in range(together):
                    tabled, which = self.tabled(step + index, index if together > 1 else None)
                    self.add_step(step + index, tabled, which, places, sums)
        return self.weighted(sums)

    def tabled(self, step: Value, index: int | None) -> tuple[Value, int]:
        """A vector with a step's two tables, and which of its four is the first of them.

        `index` is odd where the step is, or None where that is not known.
        """
        held = vectors.load(self.code, self.a.pointer("tables"), (step >> 1) * VECTOR_BYTES)
        if index is not None:
            return held, index % 2 * 2
        return ((step & 1) > 0).broadcast(_HALF).select(held >> 16, held), 0

    def add_step(
        self,
        step: Value,
        tabled: Value,
        which: int,
        places: list[int],
        sums: list[list[Variable]],
    ) -> None:
        """Add the entries of both nibbles of a step's planes."""
        aligned = VECTOR_BYTES if self.shape.step_bytes % VECTOR_BYTES == 0 else None
        for place, (even, odd) in zip(places, sums, strict=True):
            at = step * self.step_bytes + place
            planes = self.code.load(vectors.VECTOR, self.codes, at, align=aligned)
            low = vectors.lookup16(planes, tabled, which)
            high = vectors.lookup16(planes >> 4, tabled, which + 1)
            even.set(vectors.add_widening(even.get(), vectors.low(low), vectors.low(high)))
            odd.set(vectors.add_widening(odd.get(), vectors.high(low), vectors.high(high)))

    def weighted(self, sums: list[list[Variable]]) -> list[Value]:
        """Planes' sums into one for even and one for odd rows."""
        made = []
        for parity in range(2):
            planes: list[Value] = []
            for pair in sums:
                held = pair[parity].get()
                both = vectors.interleaved(vectors.low(held), vectors.high(held))
                planes += [vectors.low(both), vectors.high(both)]
            if self.form.bits == 3:
                del planes[2]  # the second pair is of planes 1 and 2
            elif self.form.bits == 1:
                del planes[1]  # of the next step
            total = planes[0]
            for bit, plane in enumerate(planes[1:], 1):
                total = total + (plane << bit)
            made.append(total)
        return made

    # 8 bits: products of bytes.

    def bytes(self, first: Value, last: Value) -> list[Value]:
        """Dot products of codes with activations, for even and odd rows."""
        code, zero = self.code, self.code.constant(vectors.VECTOR, 0)
        sums = [[code.variable(zero) for _ in range(2)] for _ in range(2)]
        whole = last - ((last - first) & (_TOGETHER - 1))
        for start, end, together in ((first, whole, _TOGETHER), (whole, last, 1)):
            with code.loop(start, end, together) as quad:
                for index in range(together):
                    self.add_quad(quad + index, sums)
        rows = [(high.get() << 8) + low.get() for high, low in sums]
        return [rows[0].shuffle(range(parity, TILE, 2), rows[1]) for parity in range(2)]

    def add_quad(self, quad: Value, sums: list[list[Variable]]) -> None:
        """Add products of 4 columns of high bytes, and of low ones, to sums of half a tile each."""
        words = self.code.load(I64, self.a.pointer("bytes"), quad * 8)
        both = words.to(I32), (words >> 32).to(I32)
        for half, terms in enumerate(sums):
            place = quad * self.step_bytes + half * VECTOR_BYTES
            codes = vectors.load(self.code, self.codes, place)
            for term, x in zip(terms, both, strict=True):
                term.set(vectors.dot_bytes(term.get(), codes, x))

    # Zeros.

    def with_zero(self, products: list[Value], group: Value) -> list[Value]:
        """Products with a symmetric format's offset times the group's sum of activations added."""
        if self.form.asymmetric:
            return products
        total = vectors.load(self.code, self.a.pointer("sums"), group * VECTOR_BYTES)
        return [product + total * offset_of(self.form) for product in products]

    def add_zeros(self, block: Value, sums: list[Variable]) -> None:
        """Add what an asymmetric format's zeros make of a block."""
        code, a = self.code, self.a
        groups = self.shape.groups
        at = code.offset(a.pointer("sums"), block * (groups * VECTOR_BYTES))
        pairs, shift = zeros.sum_pairs(code, self.form, at)
        totals = [code.variable(code.constant(vectors.VECTOR, 0)) for _ in range(2)]
        tile_bytes = _offset_bytes(self.shape, self.groups)
        first = block * len(pairs) if self.shape.scaled else code.constant(I64, 0)
        for index, pair in enumerate(pairs):
            place = (first + index) * zeros.PAIR_BYTES
            with code.when(place < tile_bytes):
                for parity, total in enumerate(totals):
                    at = self.tile * tile_bytes + place + parity * VECTOR_BYTES
                    offsets = vectors.load(code, a.pointer("offsets"), at)
                    total.set(vectors.dot_halves(total.get(), offsets, pair))
        for held, total in zip(sums, totals, strict=True):
            held.set(vectors.add_shifted(held.get(), total.get(), shift))


def _plane_pairs(bits: int) -> list[int]:
    """Where in a step's bytes pairs of planes are; of 3, the second pair has plane 1 once more."""
    return {1: [0], 2: [0], 3: [0, TILE], 4: [0, 2 * TILE]}[bits]


def finish(code: Code, a: Arguments, first: Value, last: Value, peak: Value) -> None:
    """Integers of tiles to numbers: times the row's unit and the activations' scale, plus bias."""
    factor = peak * a.number("factor")
    names = ("sums_out", "units", "bias", "out")
    with code.loop(first, last) as tile:
        start = tile * (4 * TILE)
        sums, units, bias, out = (code.offset(a.pointer(name), start) for name in names)

        def number(total: Value, row: int, kind: Type) -> Value:
            unit, addend = (code.load(kind, at, 4 * row, align=4) for at in (units, bias))
            return total.to(F32) * (unit * factor) + addend

        if code.isa.lanes == 1:
            for first_row in range(0, TILE, _LOADED):
                # all loads first: for all that the compiler knows, they might be what is stored
                rows = range(first_row, first_row + _LOADED)
                held = [code.load(I32, sums, 4 * (row % 2 * _HALF + row // 2)) for row in rows]
                made = [number(total, row, F32) for row, total in zip(rows, held, strict=True)]
                for row, value in zip(rows, made, strict=True):
                    code.store(value, out, 4 * row, align=4)
        else:
            even, odd = (vectors.load(code, sums, half * VECTOR_BYTES) for half in range(2))
            both = vectors.interleaved(even, odd)
            for row, part in ((0, vectors.low(both)), (_HALF, vectors.high(both))):
                code.store(number(part, row, F32.of(_HALF)), out, 4 * row, align=4)


def factor_of(one: int) -> float:
    """What a result is multiplied by beside units and the largest peak."""
    return float(np.float32(32768 / (one * tables.PEAK)))


def lookup(
    form: Format, weights: Quantized, scales: RowScales, x: tables.Activations
) -> NDArray[np.int32]:
    """The twin: the integers of all rows, int32 [rows]."""
    rows, width = weights.codes.shape
    group, blocks = group_of(form), len(x.ratios)
    values = x.values.astype(np.int64)
    padded = np.pad(weights.codes.astype(np.int64), ((0, 0), (0, blocks * BLOCK - width)))
    dots = (padded * values).reshape(rows, -1, group).sum(axis=2)  # [rows, groups]
    factor = 1 if form.bits == 8 else 2
    # an entry counts 1 for a bit that is set and -1 for one that is not, where a code counts 1 or 0
    base = 0 if form.bits == 8 else (2**form.bits - 1) * x.sums
    products = factor * dots - base
    if not form.asymmetric:
        products += offset_of(form) * x.sums.astype(np.int64)
    if form.bits == 8:
        products >>= BYTE_SHIFT
    if scales.steps is not None:
        products = _scaled(products, _by_row(scales.steps, rows, dots))
    by_block = products.reshape(rows, blocks, -1).sum(axis=2)
    if scales.offsets is not None:
        by_block += zeros.added(form, scales.offsets, x.sums, rows)
    ratios = x.ratios & 0xFFFF
    return _scaled(by_block, ratios).sum(axis=1).astype(np.int32)


def _scaled(words: NDArray[np.int64], factors: NDArray[np.integer]) -> NDArray[np.int64]:
    return (words * factors + (1 << 14)) >> 15


def _by_row(packed: NDArray[np.int16], rows: int, like: NDArray[np.int64]) -> NDArray[np.int64]:
    """[tiles, groups, 64] -> [rows, groups], with zeros for the groups of a block's padding."""
    plain = packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])[:rows].astype(np.int64)
    return np.pad(plain, ((0, 0), (0, like.shape[1] - plain.shape[1])))


def products(
    form: Format, weights: Quantized, scales: RowScales, x: tables.Activations, one: int
) -> NDArray[np.float32]:
    """The twin of the whole kernel, float32 [rows], without a bias."""
    rows = len(weights.codes)
    factor = x.peaks.max() * np.float32(factor_of(one))
    return lookup(form, weights, scales, x) * (scales.units[:rows] * factor)
