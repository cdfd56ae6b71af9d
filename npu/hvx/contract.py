"""What a kernel may touch, so that a device can refuse a call before it harms.

A contract says of every slot whether it is memory (how many bytes of it the kernel reads or writes,
as an expression of the integer slots and the number of parts), an integer with bounds, or a number
that decides no address. Written once: evaluated in Python with integers, and printed as C for the
skel library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cpu.kernels.kernel import Kernel

# Beside the integers, what sizes may depend on: the number of parts that a call is cut into.
PARTS = "parts"


@dataclass(frozen=True)
class Expression:
    """A whole number that is known when a kernel is called, as C."""

    text: str

    def __add__(self, other: Size) -> Expression:
        return Expression(f"({self.text} + {_text(other)})")

    def __radd__(self, other: int) -> Expression:
        return self + other

    def __sub__(self, other: Size) -> Expression:
        return Expression(f"({self.text} - {_text(other)})")

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


def over(a: Size, b: Size) -> Size:
    """a / b, rounded up; neither is 0."""
    return (a + b - 1) // b


def most(a: Size, b: Size) -> Size:
    """The larger one."""
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    return Expression(f"({_text(a)} > {_text(b)} ? {_text(a)} : {_text(b)})")


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
        integers = {**integers, PARTS: parts}
        found = {}
        for name, slot in self.slots.items():
            if isinstance(slot, Memory):
                size = slot.size(integers)
                assert isinstance(size, int), name
                found[name] = size
        return found

    def size_texts(self) -> dict[str, str]:
        """The same as C, of integers called by their slots."""
        integers = {name: Expression(f"i_{name}") for name in (*self.slots, PARTS)}
        memory = {name: slot for name, slot in self.slots.items() if isinstance(slot, Memory)}
        return {name: _text(slot.size(integers)) for name, slot in memory.items()}


def contract(kernel: Kernel, slots: Mapping[str, Slot]) -> Contract:
    """A kernel's contract, of slots in any order."""
    return Contract(kernel, {name: slots[name] for name in kernel.slots})


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
            f"static void sizes_{name}(const wide *slots, wide i_{PARTS}, wide *need) {{",
            *used,
            *sizes,
            "}",
        ]
    )
