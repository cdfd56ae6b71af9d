"""Packets of the lookup loops, counted in their machine code.

    python -m npu.hvx.packets [v73]

An instruction's bits 14 and 15 are both set where it ends a packet. The loop is what is between the
target of `loop0` and the packet that ends it; a turn takes 64 rows by 256 weights, or 128 rows at 1
bit. Cycles are packets and what they wait for each other in LLVM's scheduling model
(`Loop.cycles`), since llvm-mca has none of Hexagon. `npu.hvx.counts` counts whole calls.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

from edge.formats import Format
from edge.planes import TILE
from edge.tool import finish
from npu.hvx import build, emulator, inner
from npu.hvx.isa import table
from npu.hvx.tables import BLOCK
from npu.hvx.turn import tiles_of

FORMATS = (
    *(f"w{b}{g}{z}" for b in (1, 2, 3, 4) for g in ("g32", "g64", "g128", "gc") for z in ("", "a")),
    "ternary",
)

# Weights of one lookup instruction in tables of 16-bit entries: 128 nibbles of a plane, 4 each.
LOOKUP_WEIGHTS = 512


@dataclass(frozen=True)
class Count:
    """Packets and instructions of a turn, and cycles in LLVM's model."""

    form: Format
    packets: int
    instructions: int
    lookups: int
    cycles: int

    @property
    def packets_per_1000(self) -> float:
        """Packets for 1,000 weights."""
        return 1000 * self.packets / (tiles_of(self.form) * TILE * BLOCK)

    @property
    def least_per_1000(self) -> float:
        """The same with one lookup in every packet."""
        return 1000 * self.form.bits / LOOKUP_WEIGHTS


def count(form: Format, version: int) -> Count:
    """Count a format's loop as assembled for a Hexagon version."""
    text = inner.assembly(form)
    label = re.search(r"loop0\((\S+),", text)
    assert label is not None
    marked = text.replace(f"{label[1]}:", f"{label[1]}:\nloop_begin:")
    marked = marked.replace(f"{label[1]}_end:", f"{label[1]}_end:\nloop_finish:")
    marked += "\t.globl loop_begin\n\t.globl loop_finish\n"
    code = build.assembled(table(version), marked)
    places = {name: value for name, value, _ in emulator.symbol_table(code)}
    words = emulator.text_words(code)[places["loop_begin"] // 4 : places["loop_finish"] // 4]
    body = text[text.index(f"{label[1]}:") : text.index(":endloop0")]
    packets = sum(word >> 14 & 3 == 3 for word in words)
    return Count(form, packets, len(words), body.count("vlut16"), inner.loop_of(form).cycles())


def main(words: list[str]) -> int:
    version = int(words[0].removeprefix("v")) if words else 73
    print(f"Hexagon v{version}, emulated: packets of a turn, {TILE} rows by {BLOCK} weights")
    print(f"(1 bit: {2 * TILE} rows)")
    print("| format | packets | for 1,000 weights | one lookup a packet | cycles | instructions |")
    print("| --- | --- | --- | --- | --- | --- |")
    for form in filter(inner.covers, map(Format.parse, FORMATS)):
        made = count(form, version)
        rates = f"{made.packets_per_1000:.2f} | {made.least_per_1000:.2f}"
        print(f"| {form} | {made.packets} | {rates} | {made.cycles} | {made.instructions} |")
    return 0


if __name__ == "__main__":
    finish("packets", lambda: main(sys.argv[1:]))
