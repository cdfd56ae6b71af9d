"""What linear projections of few rows and of many have in common: blocks of weights.

A block is the weights of an output that share an accumulation in integers. Its two accumulators,
of the high and of the low term of the activations, become float32 by the scale of the activations
and that of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from cpu.codegen.isa import Expansion
from cpu.codegen.language import F16, F32, I8, I32, I64, Code, Value, Variable
from cpu.kernels.kernel import Arguments, minimum
from cpu.kernels.products import NarrowProducts, Products, Terms, WideProducts, joined
from edge.formats import Format
from edge.planes import QUAD, STEP, TILE

# Weights that share an accumulation where a scale covers more of the row.
WIDE_BLOCK = 128

# Of slots: scales of weights, None where a row has one; and sums of blocks.
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
        factors = [self.layout.factors[slot] for slot in slots]
        lows = {factor: self.block_sums(x, block, -zero * factor) for factor in set(factors)}
        return [high, [code.variable(lows[factor]) for factor in factors]]

    def block_sums(self, x: Value, block: Value, factor: int = 1) -> Value:
        """Sum of a block's x, in each lane over the weights that the lane takes, times a factor."""
        code, lanes = self.code, self.code.isa.lanes
        offset = self.a.integer("row_sums") + block * 8
        if self.layout.alternating:
            return code.load(I64, x, offset).broadcast(lanes // 2).cast(I32.of(lanes)) * factor
        both = code.load(I32, x, offset) + code.load(I32, x, offset + 4)
        return (both * factor).broadcast(lanes)

    def weight_scales(self, block: Value, part: int, slots: Sequence[int]) -> list[Value | None]:
        """Scales of a block's weights in the lanes of accumulators; None where a row has one."""
        if not self.shape.grouped:
            return [None] * len(slots)
        place, kind = self.scales_place(block) + 2 * part, F16.of(self.layout.row_count)
        rows = self.code.load(kind, self.a.pointer("scales"), place)
        return [rows.shuffle(self.layout.rows[slot]).to(F32) for slot in slots]

    def scales_place(self, block: Value) -> Value:
        """Where the scales of a group are, in bytes."""
        return (self.tile * self.blocks + block) * (2 * TILE)

    def add_scaled(self, x: Value, piece: Piece, terms: Terms, scales: Scales, sums: Sums) -> None:
        """sums += (256 * high + low) * activation scale * weight scale."""
        code, lanes = self.code, self.code.isa.lanes
        block, part, slots = piece.block, piece.part, piece.slots
        activation = code.load(F32, x, self.a.integer("row_scales") + block * 4)
        for slot, made, scale, total in zip(slots, joined(terms), scales, sums, strict=True):
            factor = (activation * (1 / self.layout.factors[slot])).broadcast(lanes)
            if scale is not None:
                factor = factor * scale
            if self.form.bits == 1:
                less_zeros = self._less_halves(made, x, block, part, slot)
            elif self.form.asymmetric:
                less_zeros = (made - self._zero_product(x, block, part, slot)).to(F32)
            else:
                less_zeros = made.to(F32)
            total.set(less_zeros.fma(factor, total.get()))

    def _zero_product(self, x: Value, block: Value, part: int, slot: int) -> Value:
        """Zero times the sum of a block's x, in the lanes of an accumulator."""
        zeros = self._zeros(block, part, slot) - self.layout.offset
        return zeros * self.block_sums(x, block) * self.layout.factors[slot]

    def _less_halves(self, made: Value, x: Value, block: Value, part: int, slot: int) -> Value:
        """An accumulator less zero times the sum, in float32, where zeros are parts of a code.

        Sums have 23 bits at most, so with a zero of 1/2 nothing is rounded.
        """
        form, factor = self.form, self.layout.factors[slot]
        sums = self.block_sums(x, block).to(F32)
        if form.asymmetric:
            zeros = self._zeros(block, part, slot) - form.zero_first
            minus = (zeros - form.zero_parts * self.layout.offset).to(F32)
            minus = minus * (-factor / form.zero_parts)
        else:
            minus = self.code.like(sums, (self.layout.offset - form.zero) * factor)
        return sums.fma(minus, made.to(F32))

    def _zeros(self, block: Value, part: int, slot: int) -> Value:
        """Zeros of a block as they are stored, in the lanes of an accumulator."""
        code = self.code
        index = self.tile * self.blocks + block if self.shape.grouped else self.tile
        kind, place = I8.of(self.layout.row_count), index * TILE + part
        zeros = code.load(kind, self.a.pointer("zeros"), place)
        return zeros.shuffle(self.layout.rows[slot]).to(I32, unsigned=True)

    def finish(self, row: Value, part: int, sums: list[Value]) -> None:
        """Put the outputs in order, apply scales that are a whole row's, add the bias, store."""
        code, a, kind = self.code, self.a, F32.of(self.layout.row_count)
        if self.layout.alternating:
            even, odd = (range(first, code.isa.lanes, 2) for first in range(2))
            sums = [s.shuffle(list(even)) + s.shuffle(list(odd)) for s in sums]
        step = 2 if self.layout.alternating else 1
        held = [row for rows in self.layout.rows for row in rows[::step]]
        outputs = concatenated(sums).shuffle([held.index(row) for row in range(len(held))])
        offset = self.tile * (4 * TILE) + 4 * part
        if self.form.granularity == "channel":
            outputs = outputs * code.load(kind, a.pointer("scales"), offset)
        elif self.form.granularity == "tensor":
            outputs = outputs * code.load(F32, a.pointer("scales"))
        bias = code.load(kind, a.pointer("bias"), offset)
        code.store(outputs + bias, a.pointer("out"), row * a.integer("out_stride") + offset)


def concatenated(vectors: Sequence[Value]) -> Value:
    """One vector of all lanes in order; the number of vectors is a power of two."""
    while len(vectors) > 1:
        lanes = 2 * vectors[0].type.lanes
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [a.shuffle(range(lanes), b) for a, b in pairs]
    return vectors[0]
