"""Packets and instructions of whole kernel calls, counted as an emulator runs them (v67).

    python -m npu.hvx.counts [--json] [FORMAT ...]

qemu-hexagon writes down each piece of code that it translates, and each run of it. What is counted
is all of a call: the loops, what begins and ends them, and the functions that they call. Memory is
as the kernels' contracts say and holds zeros: no kernel branches on its data.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edge.errors import LutraError
from edge.formats import Format
from edge.planes import TILE
from npu.hvx import build, inner
from npu.hvx.contract import Contract, Memory, Whole
from npu.hvx.contracts import families
from npu.hvx.emulator import Emulator, symbol_table
from npu.hvx.isa import EMULATED, table
from npu.hvx.tables import BLOCK
from npu.hvx.weights import group_of

FORMATS = (
    *(f"w{b}g{g}{z}" for b in (2, 3, 4) for g in (32, 64, 128) for z in ("", "a")),
    *("w2gc", "w3gc", "w4gc", "w8gc", "w8g64", "w8g64a", "ternary", "ternaryg64"),
)

# A matrix of 40 tiles and 10 blocks: 2560 x 2560, as BitNet-2B has it.
_SIZES = {"width": 10 * BLOCK, "tiles": 40, "blocks": 10, "quads": 10 * BLOCK // 4}

# The common kernels that make tables.
_MAKE_TABLES = ("hvx_quantize", "hvx_tables", "hvx_split")


@dataclass(frozen=True)
class Run:
    """What a call took, for so many weights (of a product) or values (of what makes tables)."""

    kernel: str
    items: int
    packets: int
    instructions: int
    lookups: int

    def per_1024(self, number: int) -> float:
        return 1024 * number / self.items


def counted(formats: Iterable[Format]) -> Iterator[Run]:
    """Run the kernels of tables, and the product of each quantized format, once.

    Raises MissingDependency without an emulator or a compiler.
    """
    forms = [form for form in formats if form.quantized]
    common, *by_format = families(forms)
    for contract in common:
        if contract.kernel.name in _MAKE_TABLES:
            yield _run(contract, None)
    for (_, contract), form in zip(by_format, forms, strict=True):
        yield _run(contract, form)


def _run(contract: Contract, form: Format | None) -> Run:
    isa, kernel = table(EMULATED), contract.kernel
    start = build.start_object(isa)
    loops = inner.assemblies([form] if form is not None else [])
    objects = [build.kernel_object(isa, [kernel]), *(build.assembled(isa, text) for text in loops)]
    with tempfile.TemporaryDirectory() as folder:
        program, log = Path(folder) / "program", Path(folder) / "log"
        build.program([start, build.runtime_object(isa), *objects], program)
        integers = dict(_SIZES, group=group_of(form) if form is not None else BLOCK, one=1)
        with Emulator(program, log) as device:
            _call(device, contract, integers)
        packets, words, lookups = _tally(log, set(_names(start)))
    items = TILE * _SIZES["tiles"] * _SIZES["width"] if form is not None else _SIZES["width"]
    return Run(kernel.name, items, packets, words, lookups)


def _call(device: Emulator, contract: Contract, integers: Mapping[str, int]) -> None:
    sizes = contract.bytes_of(integers)
    slots = []
    for name, slot in contract.slots.items():
        if isinstance(slot, Memory):
            slots.append(device.put(np.zeros(sizes[name] + 1, np.uint8)))
        else:
            slots.append(integers[name] if isinstance(slot, Whole) else 0)
    device.call(contract.kernel.name, slots)


def _names(code: bytes) -> list[str]:
    return [name for name, _, _ in symbol_table(code)]


def _tally(log: Path, others: set[str]) -> tuple[int, int, int]:
    """Packets, words of code and lookups that ran, but for the functions of the main program."""
    pieces: dict[int, tuple[int, int, int]] = {}
    runs: Counter[int] = Counter()
    lines: list[str] = []
    with log.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("0x"):
                lines.append(line)
            elif match := re.match(r"Trace 0: \S+ \[\w+/(\w+)/.*\] ?(\S*)", line):
                if lines:
                    pieces[int(lines[0][:10], 16)] = _piece(lines)
                    lines = []
                if match[2] not in others:
                    runs[int(match[1], 16)] += 1
    parts = [[count * number for number in pieces[place]] for place, count in runs.items()]
    packets, words, lookups = (sum(column) for column in zip(*parts, strict=True))
    return packets, words, lookups


def _piece(lines: list[str]) -> tuple[int, int, int]:
    text = "".join(lines)
    return text.count("\t{\t"), len(lines), text.count("vlut16")


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m npu.hvx.counts", description=__doc__)
    parser.add_argument("formats", nargs="*", default=FORMATS, help="default: all")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(words)
    runs: list[Run] = []
    try:
        for run in counted(map(Format.parse, options.formats)):
            if not options.json:
                _print(run, first=not runs)
            runs.append(run)
    except LutraError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps([asdict(run) for run in runs]))
    return 0


def _print(run: Run, *, first: bool) -> None:
    if first:
        print("emulated v67, whole calls; for 1,024 weights (values, for kernels of tables)")
        print("| kernel | packets | instructions | lookups |")
        print("| --- | --- | --- | --- |")
    figures = [run.per_1024(n) for n in (run.packets, run.instructions, run.lookups)]
    print("| {} | {:.2f} | {:.2f} | {:.2f} |".format(run.kernel, *figures), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
