"""Loops in the text of machine code, and how much work a turn of one does.

The text is LLVM's for one function (`emit.assembly`). A loop is what lies between a label and the
last branch back to it; the compiler lays out blocks so that an innermost loop is in one piece.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_LABEL = re.compile(r"^(\.LBB\w+):")
_BRANCH = re.compile(r"^\s+(?:j\w+|b|b\.\w+|cbn?z|tbn?z)\s+.*?(\.LBB\w+)\s*$")
_VECTOR = re.compile(r"%[xyz]mm\d|\b[vqds]\d+\b")
_WIDE = re.compile(r"%[yz]mm\d|\bv\d+\.|\bq\d+\b")

# What multiplies, the most specific first: of a loop, the first kind that it has is its work, and
# others only scale results. A product is of one weight and one activation; lanes are per operand.
_MULTIPLIERS: tuple[tuple[str, dict[str, int]], ...] = (
    # AMX: 16 by 16 sums of 32 (bf16) or 64 (int8) products
    (r"tdpbf16ps|tdpfp16ps", {"tmm": 16 * 16 * 32}),
    (r"tdpb\w\wd", {"tmm": 16 * 16 * 64}),
    # i8mm: 2 by 2 sums of 8 products
    (r"u?s?u?mmla", {"4s": 32}),
    (r"[us]*dot", {"4s": 16, "2s": 8}),
    (r"[us]m[lu]l\w*2?", {"8h": 8, "4s": 4}),
    (r"vpdpbusds?", {"zmm": 64, "ymm": 32, "xmm": 16}),
    (r"vpmaddubsw", {"zmm": 64, "ymm": 32, "xmm": 16}),
    (r"vpmaddwd", {"zmm": 32, "ymm": 16, "xmm": 8}),
    (r"vdpbf16ps", {"zmm": 32, "ymm": 16, "xmm": 8}),
    (r"fml[as]", {"4s": 4, "2s": 2}),
    (r"vfn?m(add|sub)\d+ps", {"zmm": 16, "ymm": 8, "xmm": 4}),
)


# What looks up bytes, and how many.
_LOOKUPS: tuple[tuple[str, dict[str, int]], ...] = (
    ("tbl", {"16b": 16}),
    ("vpshufb", {"zmm": 64, "ymm": 32, "xmm": 16}),
)


@dataclass(frozen=True)
class Loop:
    """A loop: its instructions in order, those of loops within it apart."""

    instructions: tuple[str, ...]
    inner: tuple[Loop, ...] = ()

    def mnemonics(self) -> Counter[str]:
        """How many of each instruction, loops within left out."""
        return Counter(instruction.split()[0] for instruction in self.instructions)

    def vectors(self) -> int:
        """How many instructions work on vector registers."""
        return sum(bool(_VECTOR.search(text)) for text in self.instructions)

    def wide_vectors(self) -> int:
        """How many of these surely work on several lanes, not on one number in such a register."""
        return sum(bool(_WIDE.search(text)) for text in self.instructions)

    def lookups(self) -> int:
        """Bytes looked up in tables."""
        return sum(
            _lanes(text, pattern, lanes)
            for text in self.instructions
            for pattern, lanes in _LOOKUPS
        )

    def products(self) -> int:
        """Multiplications of a turn, of the kind that is the loop's work; 0 where it has none."""
        for pattern, lanes in _MULTIPLIERS:
            counts = [_lanes(text, pattern, lanes) for text in self.instructions]
            if any(counts):
                return sum(counts)
        return 0


def _lanes(instruction: str, pattern: str, lanes: dict[str, int]) -> int:
    """Products of an instruction that `pattern` names, by the registers it works on."""
    mnemonic, _, operands = instruction.partition(" ")
    if not re.fullmatch(pattern, mnemonic):
        return 0
    return next((count for register, count in lanes.items() if register in operands), 0)


def find_loops(assembly: str) -> list[Loop]:
    """The outermost loops of a function, with those within them."""
    lines = assembly.splitlines()
    places: dict[str, int] = {}
    ends: dict[int, int] = {}
    for number, line in enumerate(lines):
        if match := _LABEL.match(line):
            places[match[1]] = number
        elif (match := _BRANCH.match(line)) and match[1] in places:
            ends[places[match[1]]] = number
    return _nested(lines, sorted((start, -end) for start, end in ends.items()))


def _nested(lines: list[str], spans: Sequence[tuple[int, int]]) -> list[Loop]:
    """Loops of spans in order of their starts, the wider first."""
    loops, index = [], 0
    while index < len(spans):
        start, end = spans[index][0], -spans[index][1]
        index += 1
        first = index
        while index < len(spans) and spans[index][0] <= end:
            index += 1
        within = [span for span in spans[first:index] if -span[1] <= end]
        covered = {line for a, b in within for line in range(a, 1 - b)}
        own = [lines[n] for n in range(start, end + 1) if n not in covered]
        loops.append(Loop(tuple(_instructions(own)), tuple(_nested(lines, within))))
    return loops


def _instructions(lines: Sequence[str]) -> list[str]:
    """Lines that are instructions, in one spelling: mnemonic, space, operands."""
    found = (line.strip() for line in lines if line.startswith(("\t", " ")))
    return [" ".join(line.split(None, 1)) for line in found if not line.startswith(".")]


def flattened(loops: Sequence[Loop]) -> list[Loop]:
    """All loops, each before those within it."""
    return [found for loop in loops for found in (loop, *flattened(loop.inner))]
