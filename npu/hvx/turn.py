"""A turn of the lookup loops as operations: a block of a tile of 64 rows, to be scheduled.

Planes get their weights, powers of two, in one of two ways. A group's sums of each plane are kept
apart and weighted at its end: then the planes are loaded for use in the same packet, once to look
up low nibbles and once to shift, which costs no unit. Or the bytes of a vector's two planes are
interleaved, so that entries of even bytes are one plane's and those of odd bytes the other's, and
`vmpa` weights them as it adds them: that takes the permuter once for each vector, but less
registers, and nothing at the end. The shift for the high nibbles is a shift or a multiplication,
whichever unit is free, since the lookup itself takes the shifter.

A vector has one plane of 1 bit in two steps, which read other tables. So a turn takes two tiles
there, and the bytes of their vectors by turns make a vector for each step: its lookups give the
entries of the first tile in one vector, and those of the second in the next.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edge.formats import Format
from edge.planes import STEP, TILE
from npu.hvx import zeros
from npu.hvx.knobs import Knobs
from npu.hvx.registers import (
    BY_4096,
    BY_TURNS,
    CODE_STRIDE,
    CODES,
    FETCHED,
    FETCHED_SHAPE,
    FOUR,
    OFFSET_STRIDE,
    OFFSETS,
    ONE,
    RATIO,
    REACH,
    SCALE_STRIDE,
    SCALES,
    SUM_PAIRS,
    SUMS,
    TABLES_AT,
    TOTALS,
    TWO,
    WEIGHTS,
    WEIGHTS_AT,
    ZERO_SHIFT,
)
from npu.hvx.schedule import (
    Access,
    Fixed,
    Half,
    Kind,
    Operation,
    Pointer,
    Register,
    Source,
)
from npu.hvx.tables import BLOCK
from npu.hvx.weights import group_of, offset_of

# Two ways to shift codes in place: by the shifter, or by both multipliers.
_BY_FOUR = f"{{{{d}}}}.uh = vlsr({{}}.uh,{FOUR})"
_BY_4096 = f"{{{{d}}}}.h = vmpy({{}}.h,{BY_4096}.h):<<1:sat"


@dataclass(frozen=True)
class _Use:
    """Whose tables are looked up, and what two planes count where they are weighted at once."""

    step: int
    weights: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class _Place:
    """Two planes of a step, or of two, or one of a step: which vector of the block."""

    vector: int
    uses: tuple[_Use, ...]
    interleaved: bool = False


@dataclass(frozen=True)
class _Prepared:
    """Codes for both lookups of each use; low ones are loaded again, or were, if there are none.

    `entries` are those of low codes that were looked up.
    """

    codes: tuple[tuple[Source | None, Register], ...]
    entries: Register | None = None


def tiles_of(form: Format) -> int:
    """Tiles of a turn."""
    return 2 if form.bits == 1 else 1


def _codes(place: _Place, tile: int = 0) -> Access:
    pointer, offset = divmod(place.vector, REACH)
    return Access(CODES[pointer + tile], offset - REACH // 2)


def _of_three(even: int) -> tuple[_Place, ...]:
    """The three vectors of two steps of three planes. The middle one serves both, with half of it.

    Its planes are the last of the even step and the first of the odd one.
    """
    odd, first = even + 1, even // 2 * 3
    by_vector = (
        (_Use(even, (1, 2)),),
        (_Use(even, (4, 0)), _Use(odd, (0, 1))),
        (_Use(odd, (2, 4)),),
    )
    return tuple(_Place(first + n, uses, interleaved=True) for n, uses in enumerate(by_vector))


@dataclass
class Turn:
    """Writes the operations of one turn."""

    form: Format
    knobs: Knobs
    operations: list[Operation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.group = group_of(self.form)
        self.scaled = self.form.granularity == "group"
        self.tiles = tiles_of(self.form)
        self.begun = self.doubled = 0
        self.tables: dict[int, Register] = {}
        self.prepared: list[_Prepared] = []
        self.turned: dict[int, Register] = {}
        groups = range(BLOCK // self.group)
        self.sequence = [place for g in groups for places in self.passes(g) for place in places]
        self.late = False

    # Operations.

    def add(self, text: str, kind: Kind, *reads: Source, **more: Any) -> Operation:
        made = Operation(text, kind, reads=reads, late=self.late, **more)
        self.operations.append(made)
        return made

    def value(self, text: str, kind: Kind, *reads: Source, **more: Any) -> Register:
        made = Register()
        self.add(text, kind, *reads, writes=made, **more)
        return made

    def pair(self, text: str, kind: Kind, *reads: Source, **more: Any) -> Register:
        made = Register(pair=True)
        self.add(text, kind, *reads, writes=made, **more)
        return made

    # A turn.

    def write(self) -> list[Operation]:
        """All operations, in an order in which they may run."""
        sums: list[Register | Half] = []
        from_zeros: list[Register] = []
        groups = BLOCK // self.group
        self.fetch()
        for group in range(groups):
            products = self.with_zero(self.products(group), group)
            if self.scaled:
                products = [
                    scaled
                    for tile in range(self.tiles)
                    for scaled in self.scale(
                        products[2 * tile : 2 * tile + 2], Access(SCALES[tile], group)
                    )
                ]
            if not sums:
                sums = products
            else:
                for held, product in zip(sums, products, strict=True):
                    self.onto("{0}.w = vadd({0}.w,{1}.w)", "any", held, product)
            if self.form.asymmetric and group == min(self.knobs.zeros_after, groups - 1):
                from_zeros = self.zero_sums()
        for held, total in zip(sums, from_zeros, strict=False):
            self.onto(f"{{0}}.w += vasr({{1}}.w,{ZERO_SHIFT})", "shift", held, total)
        self.finish(sums)
        return self.operations

    def onto(
        self, text: str, kind: Kind, total: Register | Half, *reads: Source, **more: Any
    ) -> None:
        """An operation that adds to a total, {0} in its text."""
        writes = total.of if isinstance(total, Half) else total
        self.add(text, kind, total, *reads, writes=writes, adds=True, **more)

    def is_interleaved(self, group: int) -> bool:
        """Whether a group's planes are weighted as they are added."""
        chosen = self.form.bits > 1 and self.knobs.interleaved >> group & 1
        return self.form.bits == 3 or bool(chosen)

    def passes(self, group: int) -> list[list[_Place]]:
        """What is looked up for a group: places that share sums, two planes each."""
        steps = range(group * self.group // STEP, (group + 1) * self.group // STEP)
        if self.form.bits == 3:
            return [[place for even in steps[::2] for place in _of_three(even)]]
        if self.form.bits == 1:
            return [[_Place(step // 2, (_Use(step),)) for step in steps]]
        pairs = self.form.bits // 2
        interleaved = self.is_interleaved(group)
        by_pair = [
            [
                _Place(step * pairs + pair, (_Use(step, WEIGHTS[pair]),), interleaved)
                for step in steps
            ]
            for pair in range(pairs)
        ]
        if not interleaved:
            return by_pair
        return [[place for both in zip(*by_pair, strict=True) for place in both]]

    def products(self, group: int) -> list[Register | Half]:
        """The planes' sums of even and of odd rows, weighted by powers of two."""
        passes = self.passes(group)
        if self.is_interleaved(group):
            return self.weighted_sums(passes[0], last=self.is_last(group))
        if self.form.bits == 1:
            sums = self.plane_sums(passes[0], last=self.is_last(group))
            return [Half(pair, parity) for pair in sums for parity in range(2)]
        made: list[list[Register | Half]] = []
        for index, places in enumerate(passes):
            last = self.is_last(group) and index == len(passes) - 1
            planes = [self.by_plane(held) for held in self.plane_sums(places, last=last)]
            made.append([self.two_planes(pair) for pair in planes])
        for later in made[1:]:
            for low, high in zip(made[0], later, strict=True):
                self.onto(f"{{0}}.w += vasl({{1}}.w,{TWO})", "shift", low, high)
        return made[0]

    def is_last(self, group: int) -> bool:
        return group == BLOCK // self.group - 1

    def weighted_sums(self, places: list[_Place], *, last: bool) -> list[Register | Half]:
        """Sums of entries times what their planes count, of even and of odd rows."""
        sums: Register | None = None
        for index, place in enumerate(places):
            entries = self.look_up(place)
            self.late = last and index >= len(places) - self.knobs.late
            for use, both in zip(place.uses, entries, strict=True):
                by = WEIGHTS_AT[self.form.bits][use.weights]
                for each in both:
                    if sums is None:
                        sums = self.pair(f"{{d}}.w = vmpa({{0}}.h,{by}.b)", "multiply", each)
                    else:
                        text = f"{{0}}.w += vmpa({{1}}.h,{by}.b)"
                        self.onto(text, "multiply", sums, each)
            self.late = False
        self.late = last
        assert sums is not None
        return [Half(sums, parity) for parity in range(2)]

    def plane_sums(self, places: list[_Place], *, last: bool) -> list[Register]:
        """Sums of entries of a pair of planes: pairs of vectors, for even and for odd rows.

        Of 1 bit, for the first and for the second tile.
        """
        sums: list[Register] = []
        for index, place in enumerate(places):
            entries = self.look_up(place)
            self.late = last and index >= len(places) - self.knobs.late
            for low, high in entries:
                for half in range(2):
                    both = Half(low, half), Half(high, half)
                    if len(sums) < 2:
                        sums.append(self.pair("{d}.w = vadd({0}.h,{1}.h)", "multiply", *both))
                    else:
                        add = "{0}.w += vadd({1}.h,{2}.h)"
                        self.onto(add, "multiply", sums[half], *both)
            self.late = False
        self.late = last
        return sums

    def look_up(self, place: _Place) -> list[tuple[Register, Register]]:
        """Entries of both nibbles of two planes, for each use."""
        last = len(self.sequence) - 1
        while len(self.prepared) <= min(self.begun + self.knobs.ahead, last):
            multiplied = self.knobs.multiplied >> len(self.prepared) & 1
            if multiplied and len(self.prepared) > self.begun + self.knobs.multiplied_ahead:
                break
            self.prepared.append(self.prepare(len(self.prepared)))
        prepared = self.prepared[self.begun]
        self.begun += 1
        return [
            (
                prepared.entries or self.look_up_low(place, use.step, low),
                self.entries(use.step, 1, high),
            )
            for use, (low, high) in zip(place.uses, prepared.codes, strict=True)
        ]

    def look_up_low(self, place: _Place, step: int, codes: Source | None = None) -> Register:
        if codes is not None:
            return self.entries(step, 0, codes)
        text = f"{{d}}.h = vlut16({{m}}.b,{{0}}.h,r{2 * (step % 2)}):nomatch"
        return self.pair(text, "both_lookup", self.table(step), passing=_codes(place))

    def entries(self, step: int, quad: int, codes: Source) -> Register:
        text = f"{{d}}.h = vlut16({{1}}.b,{{0}}.h,r{2 * (step % 2) + quad}):nomatch"
        return self.pair(text, "both_lookup", self.table(step), codes)

    def table(self, step: int) -> Source:
        """The tables of two steps: some stay in registers, others are loaded each time."""
        index = step // 2
        if index < self.knobs.resident:
            return Fixed(index)
        if index not in self.tables:
            access = Access(TABLES_AT, index - REACH // 2)
            self.tables[index] = self.value("{d} = vmem({a})", "any", access=access)
        return self.tables[index]

    def prepare(self, index: int) -> _Prepared:
        """The high nibbles of a vector's codes, where low ones were, and what is made beside them.

        A multiplication of what is not interleaved runs beside the lookup of the low ones; the next
        planes are interleaved beside a shift of these, which leaves the permuter free.
        """
        place = self.sequence[index]
        multiplied = bool(self.knobs.multiplied >> index & 1)
        if self.form.bits == 1:
            codes = Half(self.step_pair(place), place.uses[0].step % 2)
            return _Prepared(((codes, self.shifted(codes, multiplied=multiplied)),))
        if place.interleaved:
            low = self.interleaved(index)
            high = self.shifted(low, multiplied=multiplied)
            first = self.operations[-1]
            follows = index + 1 < len(self.sequence) and self.sequence[index + 1].interleaved
            if follows and not multiplied:
                self.interleaved(index + 1)
                first.companion = self.operations[-1]
            return _Prepared(((low, high),) * len(place.uses))
        if not multiplied:
            text = _BY_FOUR.format("{m}")
            high = self.value(text, "shift", passing=_codes(place))
            return _Prepared(((None, high),))
        entries = self.look_up_low(place, place.uses[0].step)
        first = self.operations[-1]
        high = self.value(_BY_4096.format("{m}"), "multiply")
        first.companion = self.operations[-1]
        return _Prepared(((None, high),), entries)

    def step_pair(self, place: _Place) -> Register:
        """One plane of two tiles, rows by turns: of an even step, then of the odd one."""
        if place.vector not in self.turned:
            first = self.value("{d} = vmem({a})", "any", access=_codes(place))
            text = f"{{d}} = vshuff({{m}},{{0}},{BY_TURNS})"
            both = self.pair(text, "both_lookup", first, passing=_codes(place, tile=1))
            self.turned[place.vector] = both
        return self.turned[place.vector]

    def shifted(self, codes: Source, *, multiplied: bool) -> Register:
        """High nibbles where low ones were."""
        if multiplied:
            return self.value(_BY_4096.format("{0}"), "multiply", codes)
        return self.value(_BY_FOUR.format("{0}"), "shift", codes)

    def interleaved(self, index: int) -> Register:
        """Two planes, bytes by turns."""
        if index not in self.turned:
            access = _codes(self.sequence[index])
            self.turned[index] = self.value("{d}.b = vshuff({m}.b)", "permute", passing=access)
        return self.turned[index]

    def move(self, pointer: Pointer, by: str) -> None:
        self.add(f"{pointer.name} = add({pointer.name},{by})", "none", moves=pointer)

    def by_plane(self, sums: Register) -> Register:
        """Sums of the first plane, then of the second, rows in order."""
        turned = f"{{d}} = vshuff({{1}},{{0}},{BY_TURNS})"
        return self.pair(turned, "both_lookup", Half(sums, 0), Half(sums, 1))

    def two_planes(self, planes: Register) -> Register | Half:
        """First plane plus twice the second: by a shift, or by adding twice."""
        first, second = Half(planes, 0), Half(planes, 1)
        self.doubled += 1
        if self.knobs.doubled and not self.doubled % self.knobs.doubled:
            self.onto(f"{{0}}.w += vasl({{1}}.w,{ONE})", "shift", first, second)
            return first
        once = self.value("{d}.w = vadd({0}.w,{1}.w)", "any", first, second)
        self.onto("{0}.w = vadd({0}.w,{1}.w)", "any", once, second)
        return once

    def with_zero(self, products: list[Register | Half], group: int) -> list[Register | Half]:
        """Products with the sum of the group's activations added, times a symmetric format's 1."""
        if self.form.asymmetric or not offset_of(self.form):
            return products
        by = "vadd" if offset_of(self.form) > 0 else "vsub"
        text, access = f"{{0}}.w = {by}({{0}}.w,{{m}}.w)", Access(SUMS, group)
        if not self.knobs.together:
            for product in products:
                self.onto(text, "any", product, passing=access)
            return products
        self.onto(text, "any", products[0], passing=access)
        first = self.operations[-1]
        self.onto(text, "any", products[1])
        first.companion = self.operations[-1]
        return products

    def zero_sums(self) -> list[Register]:
        """What an asymmetric format's zeros make of the block, not yet shifted."""
        totals: list[Register] = []
        for pair in range(zeros.pairs_of(self.form)):
            text = f"vdmpy({{m}}.h,{SUM_PAIRS[pair]}.h):sat"
            for place in range(2 * self.tiles):
                tile, parity = divmod(place, 2)
                access = Access(OFFSETS[tile], 2 * pair + parity)
                # before v69 it takes both multipliers
                if not pair:
                    totals.append(self.value(f"{{d}}.w = {text}", "multiply", passing=access))
                else:
                    self.onto(f"{{0}}.w += {text}", "multiply", totals[place], passing=access)
        return totals

    def scale(self, products: list[Register | Half], steps: Access) -> list[Register | Half]:
        """Products of a tile times a group's scales."""
        text = "{{d}}.w = vmpyo({{0}}.w,{}.h):<<1:rnd:sat"
        if self.knobs.scales_together:
            odd = self.value(text.format("{m}"), "multiply", products[1], passing=steps)
            first = self.operations[-1]
            both = self.value("{d}.h = vshuffe({m}.h,{m}.h)", "any")
            first.companion = self.operations[-1]
            return [self.value(text.format("{1}"), "multiply", products[0], both), odd]
        both = self.value("{d}.h = vshuffe({m}.h,{m}.h)", "any", passing=steps)
        return [
            self.value(text.format("{1}"), "multiply", products[0], both),
            self.value(text.format("{m}"), "multiply", products[1], passing=steps),
        ]

    def finish(self, sums: list[Register | Half]) -> None:
        """Sums of the block times its ratio, added to the tile's totals in memory."""
        for place, held in enumerate(sums):
            text = "{d}.w = vmpyo({0}.w,{m}.h):<<1:rnd:sat"
            made = self.value(text, "multiply", held, passing=Access(RATIO))
            total = Access(TOTALS, place)
            self.onto("{0}.w = vadd({0}.w,{m}.w)", "any", made, passing=total)
            summed = self.operations[-1]
            self.add("vmem({a}) = {0}.new", "none", made, access=total)  # takes no unit
            summed.companion = self.operations[-1]
        self.move(TOTALS, f"#{4 * TILE * self.tiles}")
        for tile in range(self.tiles):
            if self.scaled:
                self.move(SCALES[tile], SCALE_STRIDE)
            if self.form.asymmetric:
                self.move(OFFSETS[tile], OFFSET_STRIDE)
        self.late = False
        for pointer in CODES[: self.form.bits * self.tiles]:
            self.move(pointer, CODE_STRIDE)

    def fetch(self) -> None:
        """Ask for the next turn's codes; after the last tile nothing comes of it."""
        low, high = FETCHED_SHAPE
        for pointer in FETCHED[: self.tiles]:
            text = f"l2fetch({pointer.name},{high}:{low[1:]})"
            self.add(text, "alone", access=Access(pointer))
            self.move(pointer, CODE_STRIDE)
