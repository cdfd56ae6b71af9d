"""The lookup loops for whole blocks of 256 activations at 2 to 4 bits, as scheduled assembly.

One turn takes a block of a tile of 64 rows, with the tables of the block held in registers (T-MAN's
tile: 16 vectors of tables, 256 activations). The planes are loaded for use in the same packet, once
to look up low nibbles and once to shift, which costs no unit; the shift for the high nibbles is a
shift or a multiplication, whichever unit is free, since the lookup itself takes the shifter.

`gemv` is what these compute, to the bit. A call takes a struct of 32-bit words, see `WORDS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from edge.formats import Format
from edge.planes import STEP, TILE
from npu.hvx import zeros
from npu.hvx.isa import VECTOR_BYTES
from npu.hvx.knobs import KNOBS, Knobs, shape_of
from npu.hvx.schedule import (
    PASSING,
    Access,
    Fixed,
    Half,
    Kind,
    Loop,
    Operation,
    Pointer,
    Register,
    Source,
)
from npu.hvx.tables import BLOCK
from npu.hvx.weights import group_of, offset_of

# Arguments: addresses (all of whole vectors; `scratch` is one that the loop may write to), the
# block's ratio in both halves of a word, how many tiles, bytes from a tile's codes, scales and
# offsets to the next one's. Behind them, for an asymmetric format, what `zeros.sum_pairs` makes:
# the shift, then the sums of activations of pairs of groups.
WORDS = (
    *("tables", "codes", "steps", "offsets", "sums", "totals", "scratch"),
    *("ratio", "tiles", "code_stride", "scale_stride", "offset_stride"),
)

_STEPS = BLOCK // STEP
_TABLES = 16

# Scalar registers. r0 to r3 hold 0 to 3, which of a vector's tables is meant.
_ONE, _FOUR, _BY_4096, _WORDS_BY_TURNS, _TWO = "r1", "r4", "r5", "r6", "r7"
_CODES = tuple(Pointer(name) for name in ("r9", "r10", "r11", "r12"))
_SCALES, _OFFSETS, _TOTALS = Pointer("r13"), Pointer("r14"), Pointer("r15")
_SUMS, _RATIO, _TABLES_AT = Pointer("r16"), Pointer("r17"), Pointer("r28")
_CODE_STRIDE, _SCALE_STRIDE, _OFFSET_STRIDE = "r18", "r19", "r20"
_ZERO_SHIFT, _SUM_PAIRS = "r21", ("r22", "r23", "r24", "r25")
_FETCHED, _FETCHED_SHAPE = Pointer("r8"), ("r26", "r27")

# Vectors that a code pointer reaches, half of them before it.
_REACH = 16


def covers(form: Format) -> bool:
    """Whether a scheduled loop exists for a format."""
    return form.quantized and shape_of(form) in KNOBS


def name_of(form: Format) -> str:
    """The function's name; formats that differ in nothing the loop sees share one."""
    return f"lookup_blocks_{'ternary_' if form.kind == 'ternary' else ''}{shape_of(form)}"


@dataclass(frozen=True)
class _Place:
    """Two planes of a step, or of two: which step's tables, and which vector of the block."""

    step: int
    vector: int


def _codes(place: _Place) -> Access:
    pointer, offset = divmod(place.vector, _REACH)
    return Access(_CODES[pointer], offset - _REACH // 2)


@dataclass
class _Turn:
    """Writes the operations of one turn."""

    form: Format
    knobs: Knobs
    operations: list[Operation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.group = group_of(self.form)
        self.scaled = self.form.granularity == "group"
        self.begun = self.doubled = 0
        self.tables: dict[int, Register] = {}
        self.shifted: list[tuple[Register, Register | None]] = []
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
                products = self.scale(products, group)
            if not sums:
                sums = products
            else:
                for held, product in zip(sums, products, strict=True):
                    self.onto("{0}.w = vadd({0}.w,{1}.w)", "any", held, product)
            if self.form.asymmetric and group == min(self.knobs.zeros_after, groups - 1):
                from_zeros = self.zero_sums()
        for held, total in zip(sums, from_zeros, strict=False):
            self.onto(f"{{0}}.w += vasr({{1}}.w,{_ZERO_SHIFT})", "shift", held, total)
        self.finish(sums)
        return self.operations

    def onto(
        self, text: str, kind: Kind, total: Register | Half, *reads: Source, **more: Any
    ) -> None:
        """An operation that adds to a total, {0} in its text."""
        writes = total.of if isinstance(total, Half) else total
        self.add(text, kind, total, *reads, writes=writes, adds=True, **more)

    def passes(self, group: int) -> list[list[_Place]]:
        """What is looked up for a group: places that share sums, two planes each.

        Of 3 bits, two steps take three vectors. The middle one has the last plane of the even step
        and the first of the odd one, and is looked up for each, with half of the sums of use.
        """
        steps = range(group * self.group // STEP, (group + 1) * self.group // STEP)
        if self.form.bits == 3:
            even, odd = steps[::2], steps[1::2]
            return [
                [_Place(step, step // 2 * 3 + vector) for step in chosen]
                for chosen, vector in ((even, 0), (odd, 2), (even, 1), (odd, 1))
            ]
        pairs = self.form.bits // 2
        return [[_Place(step, step * pairs + n) for step in steps] for n in range(pairs)]

    def products(self, group: int) -> list[Register | Half]:
        """The planes' sums of even and of odd rows, weighted by powers of two."""
        passes = self.passes(group)
        three: list[list[Register]] = []
        made: list[list[Register | Half]] = []
        for index, places in enumerate(passes):
            last = group == BLOCK // self.group - 1 and index == len(passes) - 1
            sums = self.plane_sums(places, last=last)
            self.late = self.late or last
            planes = [self.by_plane(held) for held in sums]
            if self.form.bits == 3:
                three.append(planes)
                self.weigh_three(*zip(*three, strict=True))
            else:
                made.append([self.two_planes(pair) for pair in planes])
        if self.form.bits == 3:
            return [Half(pair, 0) for pair in three[0]]
        for later in made[1:]:
            for low, high in zip(made[0], later, strict=True):
                self.onto(f"{{0}}.w += vasl({{1}}.w,{_TWO})", "shift", low, high)
        return made[0]

    def plane_sums(self, places: list[_Place], *, last: bool) -> list[Register]:
        """Sums of entries of a pair of planes: pairs of vectors, for even and for odd rows."""
        sums: list[Register] = []
        for index, place in enumerate(places):
            low, high = self.look_up(place)
            self.late = last and index >= len(places) - self.knobs.late
            for parity in range(2):
                entries = Half(low, parity), Half(high, parity)
                if len(sums) < 2:
                    sums.append(self.pair("{d}.w = vadd({0}.h,{1}.h)", "multiply", *entries))
                else:
                    add = "{0}.w += vadd({1}.h,{2}.h)"
                    self.onto(add, "multiply", sums[parity], *entries)
            self.late = False
        return sums

    def look_up(self, place: _Place) -> tuple[Register, Register]:
        """Entries of both nibbles of two planes."""
        last = len(self.sequence) - 1
        while len(self.shifted) <= min(self.begun + self.knobs.ahead, last):
            multiplied = self.knobs.multiplied >> len(self.shifted) & 1
            if multiplied and len(self.shifted) > self.begun + self.knobs.multiplied_ahead:
                break
            self.shifted.append(self.shift(self.sequence[len(self.shifted)]))
        shifted, low = self.shifted[self.begun]
        self.begun += 1
        if low is None:
            low = self.look_up_low(place)
        text = f"{{d}}.h = vlut16({{1}}.b,{{0}}.h,r{2 * (place.step % 2) + 1}):nomatch"
        return low, self.pair(text, "both_lookup", self.table(place.step), shifted)

    def look_up_low(self, place: _Place) -> Register:
        text = f"{{d}}.h = vlut16({{m}}.b,{{0}}.h,r{2 * (place.step % 2)}):nomatch"
        return self.pair(text, "both_lookup", self.table(place.step), passing=_codes(place))

    def table(self, step: int) -> Source:
        """The tables of two steps: some stay in registers, others are loaded each time."""
        index = step // 2
        if index < self.knobs.resident:
            return Fixed(index)
        if index not in self.tables:
            access = Access(_TABLES_AT, index - _REACH // 2)
            self.tables[index] = self.value("{d} = vmem({a})", "any", access=access)
        return self.tables[index]

    def shift(self, place: _Place) -> tuple[Register, Register | None]:
        """The high nibbles of two planes, where low ones were.

        A multiplication runs beside the lookup of the low ones.
        """
        if not self.knobs.multiplied >> len(self.shifted) & 1:
            by_four = f"{{d}}.uh = vlsr({{m}}.uh,{_FOUR})"
            return self.value(by_four, "shift", passing=_codes(place)), None
        low = self.look_up_low(place)
        first = self.operations[-1]
        by_4096 = f"{{d}}.h = vmpy({{m}}.h,{_BY_4096}.h):<<1:sat"
        made = self.value(by_4096, "multiply")
        first.companion = self.operations[-1]
        return made, low

    def move(self, pointer: Pointer, by: str) -> None:
        self.add(f"{pointer.name} = add({pointer.name},{by})", "none", moves=pointer)

    def by_plane(self, sums: Register) -> Register:
        """Sums of the first plane, then of the second, rows in order."""
        turned = f"{{d}} = vshuff({{1}},{{0}},{_WORDS_BY_TURNS})"
        return self.pair(turned, "both_lookup", Half(sums, 0), Half(sums, 1))

    def two_planes(self, planes: Register) -> Register | Half:
        """First plane plus twice the second: by a shift, or by adding twice."""
        first, second = Half(planes, 0), Half(planes, 1)
        self.doubled += 1
        if self.knobs.doubled and not self.doubled % self.knobs.doubled:
            self.onto(f"{{0}}.w += vasl({{1}}.w,{_ONE})", "shift", first, second)
            return first
        once = self.value("{d}.w = vadd({0}.w,{1}.w)", "any", first, second)
        self.onto("{0}.w = vadd({0}.w,{1}.w)", "any", once, second)
        return once

    def weigh_three(self, *by_parity: tuple[Register, ...]) -> None:
        """Add the latest of `passes` to the first's: all steps' planes times 1, 2 and 4."""
        add = "{0}.w = vadd({0}.w,{1}.w)"
        shifted = "{{0}}.w += vasl({{1}}.w,{})"
        for planes in by_parity:
            total, second = Half(planes[0], 0), Half(planes[0], 1)
            if len(planes) == 2:
                self.onto(add, "any", second, Half(planes[1], 0))
                self.onto(shifted.format(_ONE), "shift", total, second)
            elif len(planes) == 3:
                third = Half(planes[1], 1)
                self.onto(add, "any", third, Half(planes[2], 0))
                self.onto(shifted.format(_TWO), "shift", total, third)
            elif len(planes) == 4:
                self.onto(add, "any", total, Half(planes[3], 1))

    def with_zero(self, products: list[Register | Half], group: int) -> list[Register | Half]:
        """Products with the sum of the group's activations added, times a symmetric format's 1."""
        if self.form.asymmetric:
            return products
        by = "vadd" if offset_of(self.form) > 0 else "vsub"
        text, access = f"{{0}}.w = {by}({{0}}.w,{{m}}.w)", Access(_SUMS, group)
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
            text = f"vdmpy({{m}}.h,{_SUM_PAIRS[pair]}.h):sat"
            for parity in range(2):
                access = Access(_OFFSETS, 2 * pair + parity)
                # before v69 it takes both multipliers
                if not pair:
                    totals.append(self.value(f"{{d}}.w = {text}", "multiply", passing=access))
                else:
                    self.onto(f"{{0}}.w += {text}", "multiply", totals[parity], passing=access)
        return totals

    def scale(self, products: list[Register | Half], group: int) -> list[Register | Half]:
        """Products times the group's scales."""
        steps = Access(_SCALES, group)
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
            made = self.value(text, "multiply", held, passing=Access(_RATIO))
            total = Access(_TOTALS, place)
            self.onto("{0}.w = vadd({0}.w,{m}.w)", "any", made, passing=total)
            summed = self.operations[-1]
            self.add("vmem({a}) = {0}.new", "none", made, access=total)  # takes no unit
            summed.companion = self.operations[-1]
        self.move(_TOTALS, "#256")
        if self.scaled:
            self.move(_SCALES, _SCALE_STRIDE)
        if self.form.asymmetric:
            self.move(_OFFSETS, _OFFSET_STRIDE)
        self.late = False
        for pointer in _CODES[: self.form.bits]:
            self.move(pointer, _CODE_STRIDE)

    def fetch(self) -> None:
        """Ask for the next tile's codes; after the last tile nothing comes of it."""
        low, high = _FETCHED_SHAPE
        text = f"l2fetch({_FETCHED.name},{high}:{low[1:]})"
        self.add(text, "alone", access=Access(_FETCHED))
        self.move(_FETCHED, _CODE_STRIDE)


def scheduled(form: Format, knobs: Knobs, most: int = 10_000) -> Loop:
    """A schedule of at most so many packets. Raises DoesNotFit."""
    made = Loop(
        operations=_Turn(form, knobs).write(),
        free=tuple(range(knobs.resident, PASSING)),
        ahead=knobs.window,
        patience=knobs.patience,
        units=knobs.units,
        latency=knobs.latency,
        limit=knobs.limit,
        shuffle=knobs.shuffle,
        most=most,
    )
    made.schedule()
    return made


def loop_of(form: Format) -> Loop:
    """The schedule of a format that `covers` has."""
    return scheduled(form, KNOBS[shape_of(form)])


def assemblies(formats: Iterable[Format]) -> list[str]:
    """The loops that kernels for these formats call."""
    return list({name_of(form): assembly(form) for form in formats if covers(form)}.values())


def assembly(form: Format) -> str:
    """The function `name_of(form)`, which takes the address of a struct of `WORDS`."""
    knobs = KNOBS[shape_of(form)]
    made = scheduled(form, knobs)
    name, label = name_of(form), f".L{name_of(form)}"
    lines = ["\t.text", f"\t.globl {name}", "\t.p2align 5", f"\t.type {name},@function", f"{name}:"]
    lines += _setup(knobs.resident, _STEPS * TILE * form.bits, label)
    lines += _packets(made.packets(before=False))
    lines += [f"\t{{ if (p0) jump:nt {label}_end }}", "\t.p2align 5", f"{label}:"]
    lines += _packets(made.packets())
    lines[-1] += ":endloop0"
    lines += [f"{label}_end:", *_packets(made.packets(this=False))]
    lines += [f"\t{{ r{i + 1}:{i} = memd(r29+#{8 * n}) }}" for n, i in enumerate(_SAVED)]
    lines += ["\t{ dealloc_return }", f"\t.size {name},.-{name}", ""]
    return "\n".join(lines)


# The first of the pairs of registers that are the caller's.
_SAVED = range(16, 28, 2)


def _setup(resident: int, code_bytes: int, label: str) -> list[str]:
    """Registers from the struct that r0 points to, and the loop; p0 says that one turn is all."""

    def word(name: str) -> str:
        return f"memw(r0+#{4 * WORDS.index(name)})"

    code = [f"allocframe(#{8 * len(_SAVED)})"]
    code += [f"memd(r29+#{8 * n}) = r{i + 1}:{i}" for n, i in enumerate(_SAVED)]
    code += [f"r28 = {word('tables')}", f"r28 = add(r28,#{_REACH // 2 * VECTOR_BYTES})"]
    code += [f"v{i} = vmem({_TABLES_AT.name}+#{i - _REACH // 2})" for i in range(resident)]
    code += [
        f"r1 = {word('ratio')}",
        f"v{PASSING} = vsplat(r1)",
        f"{_RATIO.name} = {word('scratch')}",
    ]
    code += [f"vmem({_RATIO.name}+#0) = v{PASSING}", f"r1 = {word('codes')}"]
    for index, pointer in enumerate(_CODES):
        place = (index * _REACH + _REACH // 2) * VECTOR_BYTES
        code.append(f"{pointer.name} = add(r1,#{place})")
    for pointer, name in ((_SCALES, "steps"), (_OFFSETS, "offsets"), (_TOTALS, "totals")):
        code.append(f"{pointer.name} = {word(name)}")
    code += [f"{_SUMS.name} = {word('sums')}"]
    strides = (_CODE_STRIDE, _SCALE_STRIDE, _OFFSET_STRIDE)
    names = ("code_stride", "scale_stride", "offset_stride")
    code += [f"{r} = {word(name)}" for r, name in zip(strides, names, strict=True)]
    behind = enumerate((_ZERO_SHIFT, *_SUM_PAIRS), len(WORDS))
    code += [f"{r} = memw(r0+#{4 * n})" for n, r in behind]
    code += [f"r1 = {word('tiles')}", "r1 = add(r1,#-1)", "p0 = cmp.eq(r1,#0)"]
    code += [f"loop0({label},r1)", *(f"r{which} = #{which}" for which in range(4))]
    code += [f"{_FOUR} = #4", f"{_BY_4096} = ##0x08000800", f"{_WORDS_BY_TURNS} = #-4"]
    code.append(f"{_TWO} = #2")
    code.append(f"{_FETCHED.name} = add({_CODES[0].name},{_CODE_STRIDE})")
    code.append(f"{_FETCHED.name} = add({_FETCHED.name},#-{_REACH // 2 * VECTOR_BYTES})")
    low, high = _FETCHED_SHAPE
    code += [f"{low} = ##{code_bytes << 16 | 1}", f"{high} = ##{code_bytes}"]
    return [f"\t{{ {line} }}" for line in code]


def _packets(packets: list[list[str]]) -> list[str]:
    return [f"\t{{ {'; '.join(lines)} }}" for lines in packets if lines]
