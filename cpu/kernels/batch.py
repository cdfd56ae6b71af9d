"""Linear projections of many rows with integer dot products: codes are expanded once for all rows.

The three stages of T-MAN's prefill (arXiv 2511.11248, section 4.2) on a vector unit: the codes of
the next panel, 64 outputs by 256 inputs, are asked for; those of this one are expanded by lookup
into the first-level cache; all rows are multiplied with them, some rows by some outputs at a time,
whose sums stay in registers until the panel ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cpu.codegen.language import F32, I8, I32, Code, Value
from cpu.kernels import linear
from cpu.kernels.activations import TERMS
from cpu.kernels.blocks import Outputs, Piece, Scales, Shape, Sums
from cpu.kernels.kernel import Arguments, Kernel, Thread, minimum
from cpu.kernels.products import Products, Terms, WideProducts
from edge.formats import Format
from edge.planes import STEP, TILE

# Inputs of a panel: its codes, a byte each, are 16 KB.
PANEL = 256

# A thread has one.
PANEL_BYTES = PANEL * TILE

SLOTS = (*linear.SLOTS, "panels")

_LINE = 64

# Of a turn of the loop over steps: a line of activations, to which rows are padded.
_MOST_STEPS = 8

# Of the rows that are multiplied together: pointers to them, the layout's slots, accumulators.
Values = Sequence[Value]
Slots = Sequence[int]
RowProducts = Sequence[Products]


def batch_kernel(form: Format) -> Kernel:
    """y float32 [rows, outputs] of quantized rows, as `linear.linear_kernel` (its twin is ours)."""
    shape = Shape(form)

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        first, last = thread.share(a.integer("tiles"))
        kind = _Tile if code.isa.dot_pairs is None else _PairTile
        with code.loop(first, last) as tile:
            kind(code, a, thread, tile, shape).run()

    return Kernel(f"batch_{form}", SLOTS, body)


class _Tile(Outputs):
    """Writes the code for 64 outputs of all rows. Until the last panel, `out` holds sums."""

    def __init__(self, code: Code, a: Arguments, thread: Thread, tile: Value, shape: Shape) -> None:
        super().__init__(code, a, tile, shape, code.isa.many)
        assert not self.layout.alternating
        assert not self.layout.mixed
        self.rows = a.integer("rows")
        self.x = code.offset(a.pointer("x"), a.integer("x_private") * thread.index)
        self.panel = code.offset(a.pointer("panels"), thread.index * PANEL_BYTES)
        self.slots = range(len(self.layout.rows))
        self.step_bytes = self.layout.row_count * STEP
        self.unroll = min(self.narrow_steps() or 1, self.shape.steps, _MOST_STEPS)

    def run(self) -> None:
        code, per_panel = self.code, PANEL // self.shape.block
        zero = code.constant(F32.of(code.isa.lanes), 0.0)
        with code.loop(0, self.rows) as row:
            for place in self.places():
                code.store(zero, self.out(row, *place))
        with code.loop(0, self.blocks, per_panel) as first:
            last = minimum(first + per_panel, self.blocks)
            for part in self.parts:
                self.expand_panel(first * self.shape.steps, self.end_of(last - 1), part)
                self.multiply(first, last, part)
        with code.loop(0, self.rows) as row:
            for part in self.parts:
                self.finish(row, part, [self.sums(row, part, slot) for slot in self.slots])

    def end_of(self, block: Value) -> Value:
        """The step after a block's last."""
        return minimum((block + 1) * self.shape.steps, self.steps)

    def places(self) -> Iterator[tuple[int, int]]:
        return ((part, slot) for part in self.parts for slot in self.slots)

    def out(self, row: Value, part: int, slot: int) -> Value:
        """Where an accumulator's lanes are summed up, in the order that they have."""
        offset = self.tile * (4 * TILE) + 4 * (part + slot * self.code.isa.lanes)
        return self.code.offset(self.a.pointer("out"), row * self.a.integer("out_stride") + offset)

    def sums(self, row: Value, part: int, slot: int) -> Value:
        return self.code.load(F32.of(self.code.isa.lanes), self.out(row, part, slot))

    def expand_panel(self, first: Value, last: Value, part: int) -> None:
        """Codes of some steps, and lines of those that as many steps later."""
        code, size = self.code, self.code.isa.vector_bytes
        with code.loop(first, last) as index:
            place = (index - first) * self.step_bytes
            for i, vector in self.panel_vectors(index, part):
                code.store(vector, self.panel, place + i * size)
            ahead = (index + PANEL // STEP) * self.shape.step_bytes
            for line in range(0, self.shape.step_bytes, _LINE):
                code.prefetch(self.codes, ahead + line)
        # what a last turn takes beyond: activations there may be anything
        rounded = (last + (self.unroll - 1)) // self.unroll * self.unroll
        with code.loop(
            (last - first) * self.step_bytes, (rounded - first) * self.step_bytes, size
        ) as place:
            code.store(code.constant(I8.of(size), 0), self.panel, place)

    def panel_vectors(self, index: Value, part: int) -> Iterator[tuple[int, Value]]:
        """Codes of a step, with where in the panel they go."""
        return enumerate(self.vectors(index, part, tail=True))

    def multiply(self, first: Value, last: Value, part: int) -> None:
        """Add the blocks of a panel to the sums of all rows."""
        code = self.code
        together, slots_together = code.isa.together
        whole = self.rows - self.rows % together
        groups = [
            self.slots[i : i + slots_together] for i in range(0, len(self.slots), slots_together)
        ]
        for rows, start, stop in ((together, 0, whole), (1, whole, self.rows)):
            with code.loop(start, stop, rows) as row:
                for slots in groups:
                    self.multiply_some([row + i for i in range(rows)], (first, last), part, slots)

    def multiply_some(
        self, rows: Sequence[Value], blocks: tuple[Value, Value], part: int, slots: Sequence[int]
    ) -> None:
        """The same for some rows and slots, which stay in registers."""
        code, (first, last) = self.code, blocks
        xs = [code.offset(self.x, row * self.a.integer("x_stride")) for row in rows]
        sums = [[code.variable(self.sums(row, part, slot)) for slot in slots] for row in rows]
        with code.loop(first, last) as block:
            products = [self.products(x, block, slots, self.unroll) for x in xs]
            begin = block * self.shape.steps
            with code.loop(begin, self.end_of(block), self.unroll) as turn:
                for index in (turn + i for i in range(self.unroll)):
                    place = (index - first * self.shape.steps) * self.step_bytes
                    self.step(xs, index, place, slots, products)
                for row_products in products:
                    row_products.turn()
            scales = self.weight_scales(block, part, slots)
            for x, row_products, totals in zip(xs, products, sums, strict=True):
                terms = row_products.terms()
                self.add_scaled(x, Piece(block, part, slots), terms, scales, totals)
        for row, totals in zip(rows, sums, strict=True):
            for slot, total in zip(slots, totals, strict=True):
                code.store(total.get(), self.out(row, part, slot))

    def step(
        self, xs: Values, index: Value, place: Value, slots: Slots, products: RowProducts
    ) -> None:
        """Dot products of 8 weights of some slots, which the panel has at `place`."""
        code, size = self.code, self.code.isa.vector_bytes
        taken = [
            [self.activations(x, index * STEP + self.a.integer("padded") * t) for t in range(TERMS)]
            for x in xs
        ]
        for i, slot in enumerate(self.layout.slots):
            if slot in slots:
                vector = code.load(I8.of(size), self.panel, place + i * size)
                for row_products, row_taken in zip(products, taken, strict=True):
                    for term, values in enumerate(row_taken):
                        row_products.add(term, slots.index(slot), vector, values[i])


# Of 4 lanes of one vector and 4 of another: the first two of each by turns, and the last two.
_ZIPPED = ([0, 4, 1, 5], [2, 6, 3, 7])

# The way back: of two such vectors, what was the one and what was the other.
_UNZIPPED = ([0, 2, 4, 6], [1, 3, 5, 7])


class _PairTile(_Tile):
    """The same by products of 2 outputs by 8 weights with both terms of a row at once.

    The panel has each slot's 4 outputs as two vectors, of 2 outputs by 8 weights. In place of the
    accumulators of the high and the low term, a slot has those of its first and last two outputs,
    whose lanes are high, low, high, low; after a block they are taken apart.
    """

    def __init__(self, code: Code, a: Arguments, thread: Thread, tile: Value, shape: Shape) -> None:
        super().__init__(code, a, thread, tile, shape)
        assert code.isa.dot_pairs is not None
        assert code.isa.lanes == 4
        self.dot = code.isa.dot_pairs

    def products(self, x: Value, block: Value, slots: Sequence[int], steps: int) -> Products:
        del steps
        return WideProducts(self.code, self.dot, self.start(x, block, slots))

    def panel_vectors(self, index: Value, part: int) -> Iterator[tuple[int, Value]]:
        kind, firsts = I32.of(4), dict[int, Value]()
        vectors = zip(self.layout.slots, self.vectors(index, part, tail=True), strict=True)
        for slot, vector in vectors:
            if slot not in firsts:
                firsts[slot] = vector
                continue
            for i, lanes in enumerate(_ZIPPED):
                pair = firsts[slot].cast(kind).shuffle(lanes, vector.cast(kind))
                yield 2 * slot + i, pair.cast(vector.type)

    def start(self, x: Value, block: Value, slots: Sequence[int]) -> Terms:
        code, (high, low) = self.code, super().start(x, block, slots)
        return [
            [code.variable(h.get().shuffle(lanes, w.get())) for h, w in zip(high, low, strict=True)]
            for lanes in _ZIPPED
        ]

    def step(
        self, xs: Values, index: Value, place: Value, slots: Slots, products: RowProducts
    ) -> None:
        code, size = self.code, self.code.isa.vector_bytes
        taken = [self.both_terms(x, index * STEP) for x in xs]
        for number, slot in enumerate(slots):
            for i in range(len(_ZIPPED)):
                vector = code.load(I8.of(size), self.panel, place + (2 * slot + i) * size)
                for row_products, values in zip(products, taken, strict=True):
                    row_products.add(i, number, vector, values)

    def both_terms(self, x: Value, offset: Value) -> Value:
        """8 bytes of the high and 8 of the low term."""
        low_offset = offset + self.a.integer("padded")
        high, low = (self.code.load(I8.of(8), x, place) for place in (offset, low_offset))
        return high.shuffle(range(16), low)

    def add_scaled(self, x: Value, piece: Piece, terms: Terms, scales: Scales, sums: Sums) -> None:
        worth = self.code.constant(I32.of(4), [1 << 8, 1] * 2)
        made = []
        for pair in zip(*terms, strict=True):
            first, last = (held.get() * worth for held in pair)
            high, low = (first.shuffle(lanes, last) for lanes in _UNZIPPED)
            made.append(self.code.variable(high + low))
        super().add_scaled(x, piece, [made], scales, sums)
