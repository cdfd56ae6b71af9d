"""What linear projections of few rows and of many have in common: blocks of weights.

A block is the weights of an output that share an accumulation in integers. Its two accumulators,
of the high and of the low term of the activations, become float32 by the scale of the activations
and that of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from cpu.codegen.isa import CodeLayout, Expansion
from cpu.codegen.language import F16, F32, I8, I32, I64, Code, Value, Variable
from cpu.kernels.kernel import Arguments, minimum
from cpu.kernels.products import NarrowProducts, Products, Terms, WideProducts, joined
from edge.formats import Format
from edge.planes import QUAD, STEP, TILE

# Weights that share an accumulation where a scale covers more of the row.
WIDE_BLOCK = 128

# Of vectors of sums: scales of weights, None where a row has one; and sums of blocks.
Scales = Sequence[Value | None]
Sums = Sequence[Variable]


def block_of(form: Format) -> int:
    """Weights that share an accumulation: the group, or WIDE_BLOCK for wider scales."""
    return form.group if form.granularity == "group" else WIDE_BLOCK


@dataclass(frozen=True)
class Shape:
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


@dataclass(frozen=True)
class Lanes:
    """Of a vector of float32 sums: the slots it is made of; of its lanes, rows and factors."""

    slots: tuple[int, ...]
    rows: tuple[int, ...]
    factors: tuple[int, ...]


def lanes_of(layout: CodeLayout) -> list[Lanes]:
    """A vector of sums for each slot, or where a row has two lanes, for a slot and one further on.

    Of two slots, the second is half of all slots further on: neither is mixed with the other.
    """
    count = len(layout.rows)
    factors = [(factor,) * len(layout.rows[0]) for factor in layout.factors]
    if not layout.alternating:
        return [Lanes((s,), layout.rows[s], factors[s]) for s in range(count)]
    even, _ = _neighbours(len(layout.rows[0]))

    def taken(values: Sequence[tuple[int, ...]], first: int) -> tuple[int, ...]:
        both = values[first] + values[first + count // 2]
        return tuple(both[lane] for lane in even)

    return [
        Lanes((first, first + count // 2), taken(layout.rows, first), taken(factors, first))
        for first in range(count // 2)
    ]


def _neighbours(lanes: int) -> tuple[list[int], list[int]]:
    """Even and odd lanes of two vectors: by turns 2 of each, as within 16 bytes costs least."""
    even = [
        vector * lanes + lane
        for first in range(0, lanes, 4)
        for vector in range(2)
        for lane in (first, first + 2)
    ]
    return even, [lane + 1 for lane in even]


@dataclass(frozen=True)
class Piece:
    """Some outputs of a block: those of `slots` of the layout's rows from `part` on."""

    block: Value
    part: int
    slots: Sequence[int]


class Outputs:
    """Writes the code for the 64 outputs of a tile, with codes expanded in one of two ways."""

    def __init__(
        self, code: Code, a: Arguments, tile: Value, shape: Shape, expansion: Expansion
    ) -> None:
        self.code, self.a, self.shape, self.tile = code, a, shape, tile
        self.form, self.expand = shape.form, expansion.expand
        self.layout = expansion.layout(shape.form.bits)
        self.lanes = lanes_of(self.layout)
        self.parts = range(0, TILE, self.layout.row_count)
        width = a.integer("width")
        self.steps = (width + (STEP - 1)) // STEP
        self.blocks = (width + (shape.block - 1)) // shape.block
        self.quads = (width + (QUAD - 1)) // QUAD
        by_quads, by_steps = self.quads * (QUAD * TILE), self.steps * shape.step_bytes
        tile_bytes = by_quads if self.form.bits == 8 else by_steps
        self.codes = code.offset(a.pointer("codes"), tile * tile_bytes)

    # Codes and activations.

    def vectors(self, index: Value, part: int, *, tail: bool = False) -> Iterator[Value]:
        """The layout's vectors of a step: 8 weights (fewer in a tail) of outputs from `part` on."""
        if self.form.bits == 8:
            return self._stored(index, part, tail)
        code, size = self.code, self.code.isa.vector_bytes
        offset = index * self.shape.step_bytes
        planes = [
            [
                code.load(I8.of(size), self.codes, offset + (plane * TILE + first))
                for first in range(part, part + self.layout.row_count, size)
            ]
            for plane in range(self.form.bits)
        ]
        return self.expand(code, planes)

    def _stored(self, index: Value, part: int, tail: bool) -> Iterator[Value]:
        code, size = self.code, self.code.isa.vector_bytes
        for half in range(2):
            quad = index * 2 + half
            if tail:
                # the last step may be of one half; x of the other is 0, so any codes will do
                quad = minimum(quad, self.quads - 1)
            offset = quad * (QUAD * TILE)
            for first in range(part * QUAD, (part + self.layout.row_count) * QUAD, size):
                yield code.load(I8.of(size), self.codes, offset + first)

    def activations(self, x: Value, offset: Value) -> list[Value]:
        """8 bytes of x, spread as each of the layout's vectors takes them."""
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

    # Accumulators of a block, and what becomes of them.

    def narrow_steps(self) -> int:
        """Steps whose products fit int16, as `dot` takes them; 0 where they go into int32."""
        widening = self.code.isa.widening
        if widening is None or self.form.bits == 8:
            return 0
        steps = widening.steps(self.layout, self.form.bits)
        assert steps, f"{self.code.isa.name}: products of {self.form} do not fit int16"
        return steps

    def products(self, x: Value, block: Value, slots: Sequence[int], steps: int) -> Products:
        """What dot products of a block are added to, by so many steps a turn of a loop."""
        code, isa = self.code, self.code.isa
        start, fit = partial(self.start, x, block, slots), self.narrow_steps()
        if not fit or isa.widening is None:
            return WideProducts(code, isa.dot_bytes if self.form.bits == 8 else isa.dot, start())
        assert steps <= fit
        return NarrowProducts(code, start, len(slots), once=self.shape.steps <= fit)

    def start(self, x: Value, block: Value, slots: Sequence[int]) -> Terms:
        """Accumulators of both terms of a block for some of the layout's slots.

        The low term starts at minus zero times the sum of x, where a zero is whole and symmetric.
        """
        code = self.code
        nothing = code.constant(I32.of(code.isa.lanes), 0)
        high = [code.variable(nothing) for _ in slots]
        if self.form.asymmetric or self.form.bits == 1:
            return [high, [code.variable(nothing) for _ in slots]]
        zero = int(self.form.zero) - self.layout.offset
        factors = [self.layout.whole_factor(slot) for slot in slots]
        lows = {factor: self.block_sums(x, block, -zero * factor) for factor in set(factors)}
        return [high, [code.variable(lows[factor]) for factor in factors]]

    def block_sums(self, x: Value, block: Value, factor: int = 1) -> Value:
        """Sum of a block's x, in each lane over the weights that the lane takes, times a factor."""
        code, lanes = self.code, self.code.isa.lanes
        offset = self.a.integer("row_sums") + block * 8
        if self.layout.alternating:
            return code.load(I64, x, offset).broadcast(lanes // 2).cast(I32.of(lanes)) * factor
        return self.whole_sums(x, block, factor)

    def whole_sums(self, x: Value, block: Value, factor: int = 1) -> Value:
        """Sum of a block's x in each lane, times a factor."""
        offset = self.a.integer("row_sums") + block * 8
        both = self.code.load(I32, x, offset) + self.code.load(I32, x, offset + 4)
        return (both * factor).broadcast(self.code.isa.lanes)

    def lanes_in(self, slots: Sequence[int]) -> list[Lanes]:
        """The vectors of sums of some slots."""
        return [lanes for lanes in self.lanes if lanes.slots[0] in slots]

    def weight_scales(self, block: Value, part: int, slots: Sequence[int]) -> list[Value | None]:
        """Scales of a block's weights in the lanes of sums; None where a row has one."""
        if not self.shape.grouped:
            return [None] * len(self.lanes_in(slots))
        place, kind = self.scales_place(block) + 2 * part, F16.of(self.layout.row_count)
        rows = self.code.load(kind, self.a.pointer("scales"), place)
        return [rows.shuffle(lanes.rows).to(F32) for lanes in self.lanes_in(slots)]

    def scales_place(self, block: Value) -> Value:
        """Where the scales of a group are, in bytes."""
        return (self.tile * self.blocks + block) * (2 * TILE)

    def add_scaled(self, x: Value, piece: Piece, terms: Terms, scales: Scales, sums: Sums) -> None:
        """sums += (256 * high + low) * activation scale * weight scale."""
        code, block, part = self.code, piece.block, piece.part
        activation = code.load(F32, x, self.a.integer("row_scales") + block * 4)
        factor, dots = activation.broadcast(code.isa.lanes), self._dots(piece.slots, terms)
        taken = self.lanes_in(piece.slots)
        for lanes, made, scale, total in zip(taken, dots, scales, sums, strict=True):
            if self.form.bits == 1:
                less_zeros = self._less_halves(made, x, block, part, lanes)
            elif self.form.asymmetric:
                less_zeros = (made - self._zero_product(x, block, part, lanes)).to(F32)
            else:
                less_zeros = made.to(F32)
            scaled = factor if scale is None else factor * scale
            total.set(less_zeros.fma(scaled, total.get()))

    def _dots(self, slots: Sequence[int], terms: Terms) -> Iterator[Value]:
        """256 * high + low in the lanes of sums, less what was mixed in."""
        made = dict(zip(slots, joined(terms), strict=True))
        dots = dict[int, Value]()
        for lanes in self.lanes_in(slots):
            slot = lanes.slots[0]
            dots[slot] = _added([made[held] for held in lanes.slots])
            for other in self.layout.mixed_with(slot):
                dots[slot] = dots[slot] - dots[other]
            yield dots[slot]

    def _zero_product(self, x: Value, block: Value, part: int, lanes: Lanes) -> Value:
        """Zero times the sum of a block's x, in the lanes of a sum."""
        zeros = self._zeros(block, part, lanes) - self.layout.offset
        return zeros * self.whole_sums(x, block) * self.code.constant(zeros.type, lanes.factors)

    def _less_halves(self, made: Value, x: Value, block: Value, part: int, lanes: Lanes) -> Value:
        """Dot products less zero times the sum, in float32, where zeros are parts of a code.

        Sums have 23 bits at most, so with a zero of 1/2 nothing is rounded.
        """
        form = self.form
        sums = self.whole_sums(x, block).to(F32)
        factors = self.code.constant(sums.type, lanes.factors)
        if form.asymmetric:
            zeros = self._zeros(block, part, lanes) - form.zero_first
            minus = (zeros - form.zero_parts * self.layout.offset).to(F32)
            minus = minus * (-1 / form.zero_parts)
        else:
            minus = self.code.like(sums, self.layout.offset - form.zero)
        return sums.fma(minus * factors, made.to(F32))

    def _zeros(self, block: Value, part: int, lanes: Lanes) -> Value:
        """Zeros of a block as they are stored, in the lanes of a sum."""
        code = self.code
        index = self.tile * self.blocks + block if self.shape.grouped else self.tile
        kind, place = I8.of(self.layout.row_count), index * TILE + part
        zeros = code.load(kind, self.a.pointer("zeros"), place)
        return zeros.shuffle(lanes.rows).to(I32, unsigned=True)

    def finish(self, row: Value, part: int, sums: list[Value]) -> None:
        """Put outputs in order, undo factors, apply scales that are a row's, add the bias."""
        code, a, kind = self.code, self.a, F32.of(self.layout.row_count)
        sums = [
            total * code.constant(total.type, [1 / factor for factor in lanes.factors])
            for total, lanes in zip(sums, self.lanes, strict=True)
        ]
        held = [row for lanes in self.lanes for row in lanes.rows]
        outputs = concatenated(sums).shuffle([held.index(row) for row in range(len(held))])
        offset = self.tile * (4 * TILE) + 4 * part
        if self.form.granularity == "channel":
            outputs = outputs * code.load(kind, a.pointer("scales"), offset)
        elif self.form.granularity == "tensor":
            outputs = outputs * code.load(F32, a.pointer("scales"))
        bias = code.load(kind, a.pointer("bias"), offset)
        code.store(outputs + bias, a.pointer("out"), row * a.integer("out_stride") + offset)


def _added(made: Sequence[Value]) -> Value:
    """Accumulators in the lanes of a sum: of two, neighbouring lanes are added."""
    if len(made) == 1:
        return made[0]
    first, second = made
    even, odd = (first.shuffle(lanes, second) for lanes in _neighbours(first.type.lanes))
    return even + odd


def concatenated(vectors: Sequence[Value]) -> Value:
    """One vector of all lanes in order; the number of vectors is a power of two."""
    while len(vectors) > 1:
        lanes = 2 * vectors[0].type.lanes
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [a.shuffle(range(lanes), b) for a, b in pairs]
    return vectors[0]
