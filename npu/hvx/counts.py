"""Packets and instructions of whole kernel calls, counted as an emulator runs them (v67).

    python -m npu.hvx.counts [--json] [FORMAT ...]

qemu-hexagon writes down each piece of code that it translates, and each run of it. What is counted
is all of a call: the loops, what begins and ends them, and the functions that they call. Memory is
as the kernels' contracts say, with numbers between 0 and 2 in it: none that a function which the
kernels call would treat apart.
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
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cpu.kernels.kernel import float_slot
from edge.errors import LutraError
from edge.formats import Format
from edge.planes import STEP, TILE
from edge.tool import finish
from npu.hvx import build, inner
from npu.hvx.contract import Contract, Memory, Whole
from npu.hvx.contracts import families
from npu.hvx.emulator import Emulator, symbol_table
from npu.hvx.isa import EMULATED, table
from npu.hvx.tables import BLOCK

FORMATS = (
    *(f"w{b}g{g}{z}" for b in (1, 2, 3, 4) for g in (32, 64, 128) for z in ("", "a")),
    *("w1gc", "w2gc", "w3gc", "w4gc", "w8gc", "w8g64", "w8g64a", "ternary", "ternaryg64", "f16"),
)

# A layer as BitNet-2B has it: matrices of 40 tiles and 10 blocks, 2560 x 2560, 20 heads; behind 64
# tokens. A slot that may not be so large gets the most that it may be.
_WIDTH, _TILES, _HEADS, _KV_HEADS, _HEAD_DIM, _CONTEXT = 10 * BLOCK, 40, 20, 5, 128, 64
_SIZES = {
    "width": _WIDTH,
    "size": _WIDTH,
    "tiles": _TILES,
    "blocks": _WIDTH // BLOCK,
    "groups": _WIDTH // 64,
    "steps": _WIDTH // STEP,
    "vocabulary": TILE,
    "heads": _HEADS,
    "kv_heads": _KV_HEADS,
    "head_dim": _HEAD_DIM,
    "half": _HEAD_DIM // 2,
    "padded_dim": _HEAD_DIM,
    "position": _CONTEXT - 1,
    "capacity": _CONTEXT,
}

# The product with weights that are not looked up, of one tile: in scalar floats it takes long.
_FLOAT_SIZES = {"tiles": 1, "outputs": TILE}

# Of the table by format.
_COLUMNS = 6

# Float slots are 1, but for what is 0 where a model lacks it.
_NONE = ("softcap",)


@dataclass(frozen=True)
class Run:
    """What a call took, for so many `items`: weights, elements of the cache that attention reads,
    or else values. `form` is empty where a kernel is for all formats.
    """

    kernel: str
    form: str
    items: int
    packets: int
    instructions: int
    lookups: int

    def per_1024(self, number: int) -> float:
        return 1024 * number / self.items


def counted(formats: Iterable[Format]) -> Iterator[Run]:
    """Run every kernel of a decode step, and those of each format, once.

    Raises MissingDependency without an emulator or a compiler.
    """
    forms = list(formats)
    common, *by_format = families(forms)
    for contract in common:
        yield _run(contract, None)
    for family, form in zip(by_format, forms, strict=True):
        for contract in family:
            yield _run(contract, form)


def _run(contract: Contract, form: Format | None) -> Run:
    isa, kernel = table(EMULATED), contract.kernel
    start = build.start_object(isa)
    loops = inner.assemblies([form] if form is not None else [])
    objects = [build.kernel_object(isa, [kernel]), *(build.assembled(isa, text) for text in loops)]
    sizes = _SIZES | (_FLOAT_SIZES if "outputs" in kernel.slots else {})
    with tempfile.TemporaryDirectory() as folder:
        program, log = Path(folder) / "program", Path(folder) / "log"
        build.program([start, build.runtime_object(isa), *objects], program)
        with Emulator(program, log) as device:
            _call(device, contract, sizes)
        packets, words, lookups = _tally(log, set(_names(start)))
    items = _items(contract, sizes)
    return Run(kernel.name, str(form or ""), items, packets, words, lookups)


def _items(contract: Contract, sizes: Mapping[str, int]) -> int:
    slots = contract.slots
    if "kv_heads" in slots:
        return 2 * _KV_HEADS * _CONTEXT * _HEAD_DIM
    weights = "tiles" in slots and "width" in slots
    return _WIDTH * (TILE * sizes["tiles"] if weights else 1)


def _call(device: Emulator, contract: Contract, sizes: Mapping[str, int]) -> None:
    slots, integers = [], {}
    for name, slot in contract.slots.items():
        if isinstance(slot, Whole):
            integers[name] = min(max(sizes.get(name, 0), slot.least), slot.most)
    byte_counts = contract.bytes_of(integers)
    for name, slot in contract.slots.items():
        if isinstance(slot, Memory):
            slots.append(device.put(_numbers(byte_counts[name])))
        else:
            slots.append(integers.get(name, float_slot(0 if name in _NONE else 1)))
    device.call(contract.kernel.name, slots)


def _numbers(byte_count: int) -> NDArray[np.uint16]:
    """Halves of 0.5 to 2 as float16, and of 0 to 2 where two are a float32."""
    count = byte_count // 2 + 1
    return np.random.default_rng(0).integers(0x3800, 0x4000, count).astype(np.uint16)


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
    try:
        runs = counted(map(Format.parse, options.formats))
        if options.json:
            print(json.dumps([asdict(run) for run in runs]))
        else:
            print_table(runs)
    except LutraError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def print_table(runs: Iterable[Run]) -> None:
    """Tables of kernels for all formats, and of the others, a row a format."""
    print("emulated v67, whole calls: packets / instructions for 1,024 weights, or values")
    for form, group in groupby(runs, key=lambda run: run.form):
        if not form:
            print("| kernel | packets / instructions |\n| --- | --- |")
            for run in group:
                print(f"| {run.kernel} | {_both(run)} |", flush=True)
            print("\n| format | embedding | product | lookups | int8 tiles | float16 tiles |")
            print("| --- | --- | --- | --- | --- | --- |")
            continue
        embedding, product, *tiles = group
        lookups = f"{product.per_1024(product.lookups):.2f}"
        cells = [form, _both(embedding), _both(product), lookups, *map(_both, tiles)]
        print(f"| {' | '.join(cells + [''] * (_COLUMNS - len(cells)))} |", flush=True)


def _both(run: Run) -> str:
    return f"{run.per_1024(run.packets):.2f} / {run.per_1024(run.instructions):.2f}"


if __name__ == "__main__":
    finish("counts", lambda: main(sys.argv[1:]))
