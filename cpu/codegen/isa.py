"""What a kernel may ask of an instruction set: sizes, and the operations each does its own way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from cpu.codegen.language import I16, I32, Code, Type, Value


@dataclass(frozen=True)
class CodeLayout:
    """Where the codes of `row_count` rows by 8 weights are, once expanded for the dot product.

    They are vectors of bytes, each 4 bytes being 4 neighbouring weights of a row. The dot products
    of vector i go into accumulator `slots[i]`; in accumulator s, lane j belongs to row `rows[s][j]`
    and is `factors[s]` times too large. Where `alternating`, even lanes take the first 4 of the 8
    weights and odd lanes the last 4, so that a row has two lanes; else `halves[i]` says which 4
    vector i takes. Codes are less by `offset`. To save masks, bytes for accumulator s may hold the
    codes of slots `mixed[s]` beside its own; once a block, the sums of these are subtracted.

    A tile of 64 rows is as many of these as it takes: narrow vectors take few rows at a time, so
    that all accumulators stay in registers.
    """

    slots: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]
    factors: tuple[int, ...]
    alternating: bool = True
    halves: tuple[int, ...] = ()
    offset: int = 0
    row_count: int = 64
    mixed: tuple[tuple[int, ...], ...] = ()

    def mixed_with(self, slot: int) -> tuple[int, ...]:
        """Slots whose codes are in an accumulator beside its own."""
        return self.mixed[slot] if self.mixed else ()

    def whole_factor(self, slot: int) -> int:
        """Factors of all codes in an accumulator together."""
        return sum(self.factors[held] for held in (slot, *self.mixed_with(slot)))

    def largest_code(self, bits: int) -> int:
        """Of the bytes that vectors hold, factors included."""
        worth = max(self.whole_factor(slot) for slot in self.slots)
        return ((1 << bits) - 1 - self.offset) * worth

    def products_a_step(self) -> int:
        """Vectors of a step whose products share an accumulator."""
        return max(self.slots.count(slot) for slot in self.slots)


def byte_layout(vector_bytes: int, row_count: int = 64, offset: int = 0) -> CodeLayout:
    """8-bit codes are in operand order as they are stored: for each half, all rows."""
    lanes = vector_bytes // 4
    slots = tuple(range(row_count // lanes))
    return CodeLayout(
        slots=slots * 2,
        rows=tuple(tuple(range(s * lanes, (s + 1) * lanes)) for s in slots),
        factors=(1,) * len(slots),
        alternating=False,
        halves=(0,) * len(slots) + (1,) * len(slots),
        offset=offset,
        row_count=row_count,
    )


class Expander(Protocol):
    """Makes the vectors of a CodeLayout from planes: each plane is vectors that hold its rows.

    One by one: code that uses each before it asks for the next takes fewer registers (on NEON at 4
    bits, 23 instructions for 64 weights; else 27, as accumulators are spilled).
    """

    def __call__(self, code: Code, planes: Sequence[Sequence[Value]]) -> Iterator[Value]: ...


@dataclass(frozen=True)
class Expansion:
    """How codes are expanded: by number of bits where they come out, and what brings them there."""

    layout: Callable[[int], CodeLayout]
    expand: Expander


class DotProduct(Protocol):
    """accumulator[j] += sum of codes[4j..4j+3] * activations[4j..4j+3]; bytes by i8 into i32."""

    def __call__(
        self, code: Code, accumulator: Value, codes: Value, activations: Value
    ) -> Value: ...


@dataclass(frozen=True)
class Widening:
    """Of dot products into int16, a lane of which adds up `pair` neighbouring products.

    They save an instruction or two each, and are widened for many at once: `widen(code, total,
    high, low)` adds to int32 what the accumulators of both terms of activations come to, 256 * high
    + low.
    """

    pair: int
    widen: Callable[[Code, Value, Value, Value], Value]

    def steps(self, layout: CodeLayout, bits: int) -> int:
        """Steps of 8 weights whose sums fit, whatever the codes and activations (-128 to 127)."""
        most = self.pair * layout.largest_code(bits)
        fit = min(2**15 // (most * 128), (2**15 - 1) // (most * 127))
        return fit // layout.products_a_step()


class PairProduct(Protocol):
    """accumulator += codes @ activations.T: int32 [2, 2] += uint8 [2, 8] by int8 [2, 8].

    All are vectors of 16 bytes, row after row.
    """

    def __call__(
        self, code: Code, accumulator: Value, codes: Value, activations: Value
    ) -> Value: ...


class Lookup(Protocol):
    """Bytes of a table of 16, for each lane of indices below 16."""

    def __call__(self, code: Code, table: Value, indices: Value) -> Value: ...


class PairSum(Protocol):
    """sums[j] += found[2j] * worths[0] + found[2j+1] * worths[1].

    Of bytes, signed or not, in int16; or of int16 in int32.
    """

    def __call__(
        self, code: Code, sums: Value, found: Value, worths: tuple[int, int], *, signed: bool
    ) -> Value: ...


class WideMultiplyAdd(Protocol):
    """accumulator[j] += values[j] * factor; i16 into i32."""

    def __call__(self, code: Code, accumulator: Value, values: Value, factor: int) -> Value: ...


@dataclass(frozen=True)
class TableLookup:
    """Decode by tables of partial sums (`kernels.lookup`) in place of dot products, at `bits`.

    With `add_pairs`, two planes are looked up side by side and joined as they are widened; else one
    after the other, and `multiply_add` joins what is looked up.
    """

    lookup: Lookup
    bits: tuple[int, ...]
    add_pairs: PairSum | None = None
    multiply_add: WideMultiplyAdd | None = None


# Of codes of up to 4 bits as floats: bits of a mantissa, behind which nothing is to be subtracted.
RAISED = 16


@dataclass(frozen=True)
class Tiles:
    """A matrix unit with eight tiles of 16 rows of 64 bytes, numbered 0 to 7.

    `clear` makes a tile zeros. `dot(c, a, b)` adds to c, 16 by 16 float32, the product of a, 16
    rows of 32 bfloat16, and b, 16 rows of 16 pairs of bfloat16. `raised_codes(code, planes)` makes
    of planes of 16 outputs by 8 inputs (16 bytes each) a vector of 16 float32 for each input, one
    by one: RAISED more than the codes, since such floats are made of bits alone.
    `paired(code, first, second)` makes of two vectors of 16 float32 one of pairs of bfloat16: the
    nearest, of two as near the one further from zero.
    """

    configure: Callable[[Code], None]
    release: Callable[[Code], None]
    clear: Callable[[Code, int], None]
    load: Callable[[Code, int, Value, Value], None]
    dot: Callable[[Code, int, int, int], None]
    store: Callable[[Code, int, Value, Value], None]
    raised_codes: Callable[[Code, Sequence[Value]], Iterator[Value]]
    paired: Callable[[Code, Value, Value], Value]


@dataclass(frozen=True)
class Reading:
    """How weights are best read from memory: as so many streams, and lines asked for ahead in each.

    Weights that are not to be kept (`keep`) stay out of all but the nearest cache, as each is used
    once a step.

    Processors fetch ahead by themselves within a page and for a stream or two; how much more they
    must be asked for differs. Measured on the 1.8B shape at 4 bits, GB/s of one thread and of two,
    where a plain sum of the memory reads 31 and 38 on the first and 19 and 35 on the second:

    | streams, ahead   | Zen 5     | Sapphire Rapids |
    | ---------------- | --------- | --------------- |
    | 1, not asked for | 17 and 21 | 19 (two)        |
    | 4, 1 KB          | 11 and 18 | 12 and 23       |
    | 1, 4 KB          | 25 and 29 |                 |
    | 1, 8 KB          | 30 and 29 |                 |

    Later, with lines asked for in small lots (`Isa.unroll`), on two threads of a Zen 5 whose sum
    read 46: 8 KB ahead 42.5, 6 KB 43.3, and not to be kept 43.5; at 2 bits 42.8, 43.8 and 44.6.
    """

    streams: int = 1
    ahead_bytes: int = 8192
    keep: bool = True


@dataclass(frozen=True)
class VectorFloats:
    """How operations on float32 vectors are made where LLVM would take them apart lane by lane.

    `divide(a, b)`, `multiply_add(a, b, c)` (a * b + c), `round` (to a whole number, still a float),
    `to_words` (int32, truncated), `from_words`; `fold(value, combine)` brings all lanes to a scalar
    by a function of two vectors; `load_bytes(code, pointer, offset)` loads a vector's lanes from
    signed bytes, and may read a whole vector's length of them.
    """

    divide: Callable[[Value, Value], Value]
    multiply_add: Callable[[Value, Value, Value], Value]
    round: Callable[[Value], Value]
    to_words: Callable[[Value], Value]
    from_words: Callable[[Value], Value]
    fold: Callable[[Value, Callable[[Value, Value], Value]], Value]
    load_bytes: Callable[[Code, Value, Value | int], Value]


@dataclass(frozen=True)
class Isa:
    """One instruction set with its features.

    `triple`, `processor` and `features` are LLVM's, and `tuning` the processor whose times it
    schedules for, where that is another; `data_layout` is LLVM's too, and needed where pointers are
    not of 64 bits. `vector_bytes` is the width of a vector register.
    Codes are expanded for `dot` in one of two ways: `few` costs least where each code is used for a
    row or two, `many` gives what is used for many rows the fewest accumulators. At 8 bits there is
    nothing to expand, and `dot_bytes` takes the codes as they are stored. With a
    `widening`, `dot` adds to int16 (`dot_sums`) and `dot_bytes` to int32. `dots_by_lane` says that
    they can take 4 activations out of a vector, so that these are loaded together. For many rows,
    the accumulators of `together` rows and slots are in registers at a time, and `dot_pairs`, where
    there is one, takes codes of two outputs with both terms of a row. In decode, a turn of the
    innermost loop takes `unroll` steps, or half a block: of a whole block the compiler would put
    all that asks for lines ahead at the end, and so many at once are slow (w4g64, two threads of a
    Zen 5: 32 GB/s, and 42 so). Attention takes `keys_together` keys at once, a power of
    two, whose products with four queries are in registers. `floats` is for float vectors that lack
    operations. `tables` are for codes whose decode is faster with them. `aligned` processors read
    scalars at multiples of their size alone: others are put together from bytes.
    """

    name: str
    triple: str
    processor: str
    features: str
    vector_bytes: int
    few: Expansion
    many: Expansion
    together: tuple[int, int]
    dot: DotProduct
    dot_bytes: DotProduct
    pause: Callable[[Code], None]
    reading: Reading = Reading()
    tuning: str = ""
    data_layout: str = ""
    widening: Widening | None = None
    dots_by_lane: bool = False
    dot_pairs: PairProduct | None = None
    unroll: int = 2
    keys_together: int = 4
    tiles: Tiles | None = None
    tables: TableLookup | None = None
    floats: VectorFloats | None = None
    aligned: bool = False

    @property
    def lookup_bits(self) -> tuple[int, ...]:
        """Widths of codes that are decoded by tables of partial sums."""
        return self.tables.bits if self.tables else ()

    @property
    def lanes(self) -> int:
        """float32 lanes of a vector."""
        return self.vector_bytes // 4

    @property
    def dot_sums(self) -> Type:
        """Accumulators of `dot`."""
        return (
            I16.of(self.vector_bytes // self.widening.pair) if self.widening else I32.of(self.lanes)
        )
