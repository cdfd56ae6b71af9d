"""Show the inner loop of every kernel: its instructions, and the cycles that llvm-mca models.

Code is compiled for every instruction set, also those that this machine does not run. Cycles come
from LLVM's models of cores, with everything in the nearest cache: they say what a loop could do,
never what a machine did. For ARM64 a table says whether decode waits for memory or for what it
computes, on a phone of the numbers given. docs/kernels.md is made with --out.

examples:
  lutra kernels
  lutra kernels --isa arm-i8mm --weights w4g64
  lutra kernels --isa arm-dotprod --clock-ghz 2.8 --core-gb-s 14 --memory-gb-s 30
  lutra kernels --no-cycles --json
  lutra kernels --out docs/kernels.md
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import TYPE_CHECKING

from apps.output import print_json, print_table
from apps.progress import Bar
from cpu.phone import Phone
from edge.disk import write_text
from edge.errors import LutraError, MissingDependency, UsageError

if TYPE_CHECKING:
    from cpu.codegen.isa import Isa
    from cpu.codegen.mca import Tool
    from cpu.report import Row

# Kinds of instruction that are named in a table; the rest are counted together.
_NAMED = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--isa", action="append", metavar="NAME", help="such as arm-dotprod; may be repeated"
    )
    parser.add_argument(
        "--weights", action="append", metavar="FORMAT", help="such as w4g64; may be repeated"
    )
    parser.add_argument("--no-cycles", action="store_true", help="do without llvm-mca")
    phone = Phone()
    for name, kind, value, what in (
        ("--clock-ghz", float, phone.clock_ghz, "clock of a phone's cores"),
        ("--core-gb-s", float, phone.core_gb_s, "what one core reads alone"),
        ("--memory-gb-s", float, phone.memory_gb_s, "what all cores read together"),
        ("--cores", int, phone.cores, "cores that decode"),
    ):
        parser.add_argument(
            name, type=kind, default=value, metavar="N", help=f"{what} (default: {value:g})"
        )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a page in Markdown")


def run(args: argparse.Namespace) -> int:
    """Find the loops of what was asked for and print, or write, them."""
    if importlib.util.find_spec("llvmlite") is None:
        raise MissingDependency("compiling kernels needs llvmlite", 'pip install "lutra[convert]"')
    from cpu.codegen.mca import find_tool

    phone = _phone(args)
    tool = None if args.no_cycles else find_tool()
    sections = list(_sections(args, tool, Bar(quiet=args.quiet)))
    if args.out is not None:
        write_text(args.out, _page(sections, tool, phone))
    if args.json:
        print_json(_values(sections, tool, phone))
    elif args.out is None:
        for section in sections:
            print(f"{section.isa.name}\n")
            print_table(section.table())
            print()
        if len(waits := _waits(sections, phone)) > 1:
            print(f"{_assumed(phone)}\n")
            print_table(waits)
    return 0


def _phone(args: argparse.Namespace) -> Phone:
    """Raises UsageError."""
    phone = Phone(args.clock_ghz, args.core_gb_s, args.memory_gb_s, args.cores)
    if not all(0 < number < float("inf") for number in astuple(phone)):
        raise UsageError(f"got {phone}, need numbers above 0", "see lutra kernels --help")
    return phone


class Section:
    """The rows of an instruction set, with the cycles of each on its cores."""

    def __init__(self, isa: Isa, cores: Sequence[str]) -> None:
        self.isa, self.cores = isa, cores
        self.rows: list[tuple[Row, list[float | None]]] = []

    def add(self, row: Row, tool: Tool | None) -> None:
        self.rows.append((row, [_cycles(row, tool, core) for core in self.cores if tool]))

    def table(self) -> list[list[str]]:
        """Head and rows, as text."""
        from cpu.report import UNIT

        modelled = [f"cycles per {UNIT}, {core} (modelled)" for core in self.cores]
        head = ["kernel", "a turn", "instructions", f"per {UNIT}", *modelled, "inner loop"]
        if not any(cycles for _, cycles in self.rows):
            head = [*head[:4], head[-1]]
        return [head, *(self._line(row, cycles) for row, cycles in self.rows)]

    def _line(self, row: Row, cycles: list[float | None]) -> list[str]:
        return [
            row.subject.name,
            f"{row.work:g} {row.subject.what}",
            str(len(row.loop.instructions)),
            f"{row.instructions:.1f}",
            *("-" if number is None else f"{number:.1f}" for number in cycles),
            _mixture(row),
        ]


def _sections(args: argparse.Namespace, tool: Tool | None, bar: Bar) -> Iterator[Section]:
    from cpu.report import CORES, FORMATS, find_row, isas, subjects

    wanted = args.isa or [isa.name for isa in isas()]
    unknown = set(wanted) - {isa.name for isa in isas()}
    if unknown:
        names = ", ".join(isa.name for isa in isas())
        raise UsageError(f"no instruction set {min(unknown)}", f"use one of {names}")
    for isa in isas():
        if isa.name not in wanted:
            continue
        section, found = Section(isa, CORES[isa.name]), subjects(isa, args.weights or FORMATS)
        bar.start(isa.name, len(found), "kernels")
        for subject in found:
            section.add(find_row(isa, subject), tool)
            bar.advance(1)
        bar.finish()
        yield section


def _cycles(row: Row, tool: Tool, core: str) -> float | None:
    """None where the tool does not know the core, or an instruction on it."""
    try:
        return row.cycles(tool, core)
    except LutraError:
        return None


def _waits(sections: Sequence[Section], phone: Phone) -> list[list[str]]:
    """Of what decodes on ARM64, on each core: cycles for UNIT weights and what they wait for."""
    from cpu.report import UNIT

    counts = sorted({1, phone.cores})
    cores = ["1 core" if count == 1 else f"{count} cores" for count in counts]
    table = [
        ["kernel", "core", f"bytes per {UNIT}", "cycles, computing"]
        + [f"cycles, memory of {text}" for text in cores]
        + [f"{text} wait{'s' * (text == '1 core')} for" for text in cores]
    ]
    for section, row, core, cycles in _decoding(sections):
        size = row.subject.read_bytes
        table.append(
            [f"{section.isa.name} {row.subject.name}", core, f"{size:g}", f"{cycles:.1f}"]
            + [f"{phone.cycles(size, count):.1f}" for count in counts]
            + [phone.waits_for(size, cycles, count) for count in counts]
        )
    return table


def _decoding(sections: Sequence[Section]) -> Iterator[tuple[Section, Row, str, float]]:
    """Of ARM64 what decodes, on each of its cores, with cycles."""
    for section in sections:
        if not section.isa.triple.startswith("aarch64"):
            continue
        for row, modelled in section.rows:
            for core, cycles in zip(section.cores, modelled, strict=False):
                if row.subject.read_bytes and cycles is not None:
                    yield section, row, core, cycles


def _assumed(phone: Phone) -> str:
    return (
        f"Decode on a phone (modelled), at {phone.clock_ghz:g} GHz, where one core reads "
        f"{phone.core_gb_s:g} GB/s and all {phone.memory_gb_s:g} GB/s."
    )


def _mixture(row: Row) -> str:
    """The most frequent instructions of a turn."""
    counts = row.loop.mnemonics().most_common()
    named = ", ".join(f"{count} {name}" for name, count in counts[:_NAMED])
    rest = sum(count for _, count in counts[_NAMED:])
    return f"{named}, {rest} others" if rest else named


def _page(sections: Sequence[Section], tool: Tool | None, phone: Phone) -> str:
    from cpu.codegen.emit import compiler_version

    parts = [_PREFACE.format(compiler=compiler_version(), tool=tool.version if tool else "not run")]
    for section in sections:
        head, *lines = section.table()
        isa = section.isa
        parts += [f"\n## {isa.name}\n", f"LLVM features `{isa.features}`.\n"]
        parts += [_markdown(cells) for cells in (head, ["---"] * len(head), *lines)]
    head, *lines = _waits(sections, phone)
    if lines:
        parts += [_PHONE.format(assumed=_assumed(phone))]
        parts += [_markdown(cells) for cells in (head, ["---"] * len(head), *lines)]
    return "\n".join(parts) + "\n"


def _markdown(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _values(sections: Sequence[Section], tool: Tool | None, phone: Phone) -> dict[str, object]:
    return {
        "figures": "modelled",
        "phone": asdict(phone),
        "decode": [
            {
                "isa": section.isa.name,
                "kernel": row.subject.name,
                "core": core,
                "bytes_per_64": row.subject.read_bytes,
                "cycles_computing": cycles,
                "waits_for": {
                    count: phone.waits_for(row.subject.read_bytes, cycles, count)
                    for count in sorted({1, phone.cores})
                },
            }
            for section, row, core, cycles in _decoding(sections)
        ],
        "llvm_mca": tool.version if tool else None,
        "kernels": [
            {
                "isa": section.isa.name,
                "kernel": row.subject.name,
                "what": row.subject.what,
                "work_per_turn": row.work,
                "instructions_per_turn": len(row.loop.instructions),
                "instructions_per_64": row.instructions,
                "cycles_per_64": dict(zip(section.cores, cycles, strict=False)),
                "loop": list(row.loop.instructions),
            }
            for section in sections
            for row, cycles in section.rows
        ],
    }


_PREFACE = """# Kernels: inner loops

Made by `lutra kernels --out docs/kernels.md`, which anyone can run; a test compares the counts
with what the compiler makes now. Compiled with {compiler}; cycles are **modelled** by llvm-mca
{tool}.

- **a turn**: the weights (or values, where a kernel has none) that the inner loop takes each
  time; **instructions**: how many that turn has. Of a kernel's innermost loops it is the one that
  multiplies most; of `norm and quantize` the one that makes integers. Where threads quantize
  slices of a row, and in blocks of 32 or 128, it is that of `quantize`. `lookup` decodes without
  multiplying, in place of `linear`, where it is listed; `tables` makes its tables once a step for
  all projections of an input.
- **per 64**: instructions for 64 weights, with the share of what is done once a block (scales,
  zeros, sums) where that is in the loop around. A weight is multiplied with two int8 terms of an
  activation in `linear` (decode, rows one by one), with both of some rows in `batch ...
  multiply`, with 32 rows in `gemm ... multiply`, and expanded once for all rows in
  `gemm ... expand`. `tile attention ... multiply` takes an element of a key or value with 32
  queries, by three products (f32: six); `soften` makes scores of a query weights.
- **cycles**: the same in cycles of a core, when everything is in its nearest cache and every
  branch is guessed right. Decode may wait for memory instead: see the end of this page.
  Cortex-A76 and Cortex-X3 are modelled by LLVM's tables of Neoverse-N1 and Neoverse-V2, the
  server cores of the same designs (by its own name LLVM gives Cortex-A76 that of Cortex-A57, an
  older core with fewer vector units); Neoverse-N2 stands for Cortex-A710. `-` is where the model
  has no figure."""

_PHONE = """
## Decode on a phone: memory or computing

{assumed} Each core computes what
its kernel does; all share the memory. The greater of both is what a token takes: where it is
memory, a faster kernel gains nothing with so many cores. Other numbers:
`lutra kernels --clock-ghz --core-gb-s --memory-gb-s --cores`.
"""
