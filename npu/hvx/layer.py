"""Packets of a layer's float kernels, counted in the code that LLVM schedules for them.

    python -m npu.hvx.layer [v73]

Of every kernel, the innermost loop with the most float vector instructions: the one that whole rows
spend their time in. On the emulator's version, which has no such vectors, loops take one element.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from cpu.kernels import attention, elementwise, rows
from cpu.kernels.kernel import Kernel
from edge.tool import finish
from npu.hvx.isa import Hexagon, table

_LABEL = re.compile(r"^(\.LBB\w+):")
_BACK = re.compile(r"jump\S*\s+(\.LBB\w+)")
_HARDWARE_LOOP = re.compile(r"loop0\((\.LBB\w+),")
_FLOAT = re.compile(r"\.q?[sh]f = |\.qf32 = |= sf\w+\(")


@dataclass(frozen=True)
class Count:
    """A loop's packets and instructions."""

    kernel: str
    packets: int
    instructions: int


# Kernels, and how many elements of one lane a turn of their loop makes, of what.
KERNELS: tuple[tuple[Kernel, int, str], ...] = (
    (rows.norm_kernel(), 4, "squares added"),
    (rows.rope_kernel(), 2, "elements turned"),
    (elementwise.gate_kernel("silu"), 1, "gates"),
    (elementwise.gate_kernel("gelu_tanh"), 1, "gates"),
    (attention.attention_kernel("f16"), 16, "products with values"),
    (attention.attention_kernel("int8"), 16, "products with values"),
)


def loops(text: str) -> Iterator[list[str]]:
    """Lines of the innermost loops of LLVM's assembly."""
    lines = text.splitlines()
    labels = {match[1]: n for n, line in enumerate(lines) if (match := _LABEL.match(line))}
    ends: dict[int, int] = {}
    for number, line in enumerate(lines):
        if match := _HARDWARE_LOOP.search(line):
            start = labels[match[1]]
            last = next(n for n in range(start, len(lines)) if "endloop0" in lines[n])
            ends[start] = last
        elif (match := _BACK.search(line)) and labels.get(match[1], number) < number:
            ends[labels[match[1]]] = max(number, ends.get(labels[match[1]], 0))
    spans = [(start, end) for start, end in ends.items() if start < end]
    for start, end in spans:
        if not any(start <= a and b <= end and (a, b) != (start, end) for a, b in spans):
            last = next(n for n in range(end, len(lines)) if _ends_packet(lines[n]))
            yield lines[start : last + 1]


def count(kernel: Kernel, isa: Hexagon) -> Count:
    """Compile a kernel and count its loop."""
    from cpu.codegen.emit import Module, assembly

    module = Module(isa)
    kernel.emit(module)
    found = max(loops(assembly(module)), key=_float_count)
    packets = sum(map(_ends_packet, found))
    return Count(kernel.name, packets, sum(map(_is_instruction, found)))


def _ends_packet(line: str) -> bool:
    return line.strip().startswith("}")


def _float_count(lines: list[str]) -> int:
    return sum(bool(_FLOAT.search(line)) for line in lines)


def _is_instruction(line: str) -> bool:
    return line.startswith("\t\t") and not line.strip().startswith("//")


def main(words: list[str]) -> int:
    version = int(words[0].removeprefix("v")) if words else 73
    isa = table(version)
    print(f"Hexagon v{version}, compiled, not run: packets of a turn")
    print("kernel            packets  instructions  elements  packets for 1,000")
    for kernel, vectors, what in KERNELS:
        made, elements = count(kernel, isa), vectors * isa.lanes
        print(
            f"{made.kernel:16} {made.packets:8} {made.instructions:13} {elements:9} "
            f"{1000 * made.packets / elements:18.0f}  {what}"
        )
    return 0


if __name__ == "__main__":
    finish("layer", lambda: main(sys.argv[1:]))
