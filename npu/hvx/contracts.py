"""What each kernel may touch, so that a device can refuse a call before it harms.

A contract says of every slot whether it is memory (how many bytes of it the kernel reads or writes,
as an expression of the integer slots and the number of parts), an integer with bounds, or a number
that decides no address. Written once: evaluated in Python with integers, and printed as C for the
skel library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cpu.kernels.kernel import Kernel
from edge.formats import Format
from edge.planes import QUAD, STEP, TILE
from npu.hvx import gemv, tables
from npu.hvx.isa import VECTOR_BYTES
from npu.hvx.tables import BLOCK, TABLE_BYTES
from npu.hvx.weights import group_of

# The longest row and the most tiles of 64 rows: no product of sizes leaves 64 bits.
_WIDTH = 1 << 20
_TILES = 1 << 16

# Beside the integers, what sizes may depend on.
_PARTS = "parts"


@dataclass(frozen=True)
class Expression:
    """A whole number that is known when a kernel is called, as C."""

    text: str

    def __add__(self, other: Size) -> Expression:
        return Expression(f"({self.text} + {_text(other)})")

    def __mul__(self, other: Size) -> Expression:
        return Expression(f"({self.text} * {_text(other)})")

    def __rmul__(self, other: int) -> Expression:
        return self * other

    def __floordiv__(self, other: Size) -> Expression:
        return Expression(f"({self.text} / {_text(other)})")

    def __rfloordiv__(self, other: int) -> Expression:
        return Expression(_text(other)) // self


Size = int | Expression
Sizes = Mapping[str, Size]


def _text(size: Size) -> str:
    return size.text if isinstance(size, Expression) else f"{size}ull"


@dataclass(frozen=True)
class Memory:
    """Bytes that a kernel reads, or also writes."""

    size: Callable[[Sizes], Size]
    written: bool = False
    alignment: int = 4

    @property
    def kind(self) -> str:
        return "w" if self.written else "r"


@dataclass(frozen=True)
class Whole:
    """An integer between bounds."""

    least: int
    most: int
    kind = "i"


@dataclass(frozen=True)
class Number:
    """A float32, which may be any."""

    kind = "n"


Slot = Memory | Whole | Number


@dataclass(frozen=True)
class Contract:
    """A kernel with what its slots must be, in their order."""

    kernel: Kernel
    slots: Mapping[str, Slot]

    def bytes_of(self, integers: Mapping[str, int], parts: int = 1) -> dict[str, int]:
        """Bytes of every memory slot, for these integers."""
        integers = {**integers, _PARTS: parts}
        found = {}
        for name, slot in self.slots.items():
            if isinstance(slot, Memory):
                size = slot.size(integers)
                assert isinstance(size, int), name
                found[name] = size
        return found

    def size_texts(self) -> dict[str, str]:
        """The same as C, of integers called by their slots."""
        integers = {name: Expression(f"i_{name}") for name in (*self.slots, _PARTS)}
        memory = {name: slot for name, slot in self.slots.items() if isinstance(slot, Memory)}
        return {name: _text(slot.size(integers)) for name, slot in memory.items()}


def _contract(kernel: Kernel, slots: Mapping[str, Slot]) -> Contract:
    return Contract(kernel, {name: slots[name] for name in kernel.slots})


def contracts(formats: list[Format]) -> list[Contract]:
    """Contracts of the kernels that products with weights of these formats take."""
    return [_quantize(), _tables(), _split(), *(_lookup(form) for form in formats)]


def _over(a: Size, b: int) -> Size:
    """a / b, rounded up."""
    return (a + (b - 1)) // b


def _blocks(sizes: Sizes) -> Size:
    return _over(sizes["width"], BLOCK)


_BLOCKS = Whole(1, _WIDTH // BLOCK)


def _quantize() -> Contract:
    return _contract(
        tables.quantize_kernel(),
        {
            "x": Memory(lambda s: s["width"] * 4),
            "values": Memory(lambda s: _blocks(s) * (2 * BLOCK), written=True),
            "peaks": Memory(lambda s: _blocks(s) * 4 + 4, written=True),
            "ratios": Memory(lambda s: _blocks(s) * 4, written=True),
            "sums": Memory(
                lambda s: (_blocks(s) * BLOCK // s["group"]) * VECTOR_BYTES, True, VECTOR_BYTES
            ),
            "width": Whole(1, _WIDTH),
            "group": Whole(32, BLOCK),
            "one": Whole(1, tables.RATIO_ONE),
        },
    )


def _tables() -> Contract:
    return _contract(
        tables.tables_kernel(),
        {
            "values": Memory(lambda s: s["blocks"] * (2 * BLOCK)),
            "tables": Memory(lambda s: s["blocks"] * TABLE_BYTES, True, VECTOR_BYTES),
            "blocks": _BLOCKS,
        },
    )


def _split() -> Contract:
    return _contract(
        tables.split_kernel(),
        {
            "values": Memory(lambda s: s["quads"] * (2 * QUAD)),
            "bytes": Memory(lambda s: s["quads"] * (2 * QUAD), written=True),
            "quads": Whole(1, _WIDTH // QUAD),
        },
    )


def _lookup(form: Format) -> Contract:
    group, by_table = group_of(form), form.bits < 8
    per_step, step_bytes = (STEP, TILE * form.bits) if by_table else (QUAD, TILE * QUAD)

    def steps(sizes: Sizes) -> Size:
        return _over(sizes["width"], per_step)

    def granted(sizes: Sizes) -> Size:
        """Bytes of a number of 16 bits for every row and group."""
        groups = _over(sizes["width"], group) if form.granularity == "group" else 1
        return sizes["tiles"] * groups * (2 * TILE)

    def nothing(sizes: Sizes) -> Size:
        del sizes
        return 0

    rows = Memory(lambda s: s["tiles"] * (4 * TILE))
    return _contract(
        gemv.lookup_kernel(form),
        {
            "tables": Memory(
                lambda s: _over(s["width"], 2 * STEP) * VECTOR_BYTES if by_table else 0,
                alignment=VECTOR_BYTES,
            ),
            "bytes": Memory(nothing if by_table else lambda s: steps(s) * (2 * QUAD)),
            "sums": Memory(
                lambda s: _over(s["width"], group) * VECTOR_BYTES, alignment=VECTOR_BYTES
            ),
            "ratios": Memory(lambda s: _blocks(s) * 4),
            "peaks": Memory(lambda s: _blocks(s) * 4 + 4),
            # a vector at any address is loaded as two whole ones, and one may lie behind the codes
            "codes": Memory(
                lambda s: s["tiles"] * steps(s) * step_bytes + VECTOR_BYTES, alignment=1
            ),
            "steps": Memory(
                granted if form.granularity == "group" else nothing, alignment=VECTOR_BYTES
            ),
            "offsets": Memory(granted if form.asymmetric else nothing, alignment=VECTOR_BYTES),
            "units": rows,
            "bias": rows,
            "out": Memory(rows.size, written=True),
            "sums_out": Memory(rows.size, True, VECTOR_BYTES),
            "width": Whole(1, _WIDTH),
            "tiles": Whole(1, _TILES),
            "factor": Number(),
            "scratch": Memory(lambda s: s[_PARTS] * gemv.SCRATCH_BYTES, True, VECTOR_BYTES),
        },
    )


def source(contracts: list[Contract]) -> str:
    """The table of kernels as C, which `skel.c` is compiled with."""
    made = [f"void {each.kernel.name}(word, wide, wide);" for each in contracts]
    made += [_functions(each) for each in contracts]
    rows = [
        f'  {{"{each.kernel.name}", {each.kernel.name}, {len(each.slots)}, "{_described(each)}", '
        f"slots_{each.kernel.name}, sizes_{each.kernel.name}}},"
        for each in contracts
    ]
    made += ["static const struct kernel kernels[] = {", *rows, "};"]
    return "\n".join(made) + "\n"


def _described(contract: Contract) -> str:
    return " ".join(f"{slot.kind}:{name}" for name, slot in contract.slots.items())


def _functions(contract: Contract) -> str:
    """The slots' bounds, and a function of the memory's sizes."""
    name, texts = contract.kernel.name, contract.size_texts()
    rows, sizes = [], []
    for index, (slot_name, slot) in enumerate(contract.slots.items()):
        if isinstance(slot, Memory):
            rows.append(f"  {{{'WRITTEN' if slot.written else 'READ'}, {slot.alignment}, 0, 0}},")
            sizes.append(f"  need[{index}] = {texts[slot_name]};")
        elif isinstance(slot, Whole):
            rows.append(f"  {{WHOLE, 0, {slot.least}, {slot.most}}},")
        else:
            rows.append("  {NUMBER, 0, 0, 0},")
    used = [
        f"  wide i_{slot_name} = slots[{index}];"
        for index, slot_name in enumerate(contract.slots)
        if any(f"i_{slot_name} " in f"{text} ".replace(")", " ") for text in texts.values())
    ]
    return "\n".join(
        [
            f"static const struct slot slots_{name}[] = {{",
            *rows,
            "};",
            f"static void sizes_{name}(const wide *slots, wide i_{_PARTS}, wide *need) {{",
            *used,
            *sizes,
            "}",
        ]
    )
