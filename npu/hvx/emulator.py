"""A Hexagon on the workstation: kernels in a qemu-hexagon process that stays, spoken to by pipes.

What it computes is what a device computes, to the bit; how long it takes says nothing.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cpu.codegen.piped import Piped
from edge.errors import MissingDependency
from npu.hvx.lowering import Call

QEMU = "qemu-hexagon"
CURE = "apt-get install qemu-user"

# A row of the table of calls: kernel, arguments, threads.
_ROW_BYTES = 12


def missing() -> str:
    """Why nothing can be emulated here; empty where it can."""
    return "" if shutil.which(QEMU) else f"no {QEMU} on the path"


class Emulator(Piped):
    """A running program; memory that it gave is kept until `close`.

    `log` gets each piece of code as it is translated, and each run of it. Raises MissingDependency
    without qemu.
    """

    def __init__(self, program: Path, log: Path | None = None) -> None:
        if reason := missing():
            raise MissingDependency(f"emulating Hexagon: {reason}", CURE)
        options = ["-d", "in_asm,exec,nochain", "-D", str(log)] if log is not None else []
        command = [QEMU, *options, str(program)]
        super().__init__(command, "Hexagon", symbols(program.read_bytes()), "I")

    def prepare(self, calls: Sequence[Call]) -> Table:
        """Calls as a table in its memory. See `npu.hvx.lowering.Device`."""
        return Table(self, calls)


class Table:
    """Calls in an emulator's memory. See `npu.hvx.lowering.Prepared`."""

    def __init__(self, emulator: Emulator, calls: Sequence[Call]) -> None:
        self._emulator = emulator
        counts = [len(call.arguments) for call in calls]
        starts = np.cumsum([0, *counts])
        self._arguments = emulator.allocate(8 * int(starts[-1]))
        rows = [
            (emulator.symbols[call.kernel.name], self._arguments + 8 * int(start), call.threads)
            for start, call in zip(starts, calls, strict=False)
        ]
        self._rows = emulator.put(np.array(rows, np.uint32))

    def write(self, values: NDArray[np.int64]) -> None:
        self._emulator.write(self._arguments, values)

    def run(self, first: int, last: int) -> None:
        self._emulator.run(self._rows + _ROW_BYTES * first, last - first)


def symbols(program: bytes) -> dict[str, int]:
    """Addresses of the names in an ELF program of 32 bits."""
    return {name: value for name, value, _ in symbol_table(program)}


def text_words(code: bytes) -> tuple[int, ...]:
    """The machine code of an object file: the words of its section with instructions."""
    for _, kind, flags, _, start, size, *_ in _sections(code):
        if kind == 1 and flags & 4:  # bits of the program, executable
            return struct.unpack_from(f"<{size // 4}I", code, start)
    return ()


def symbol_table(program: bytes) -> list[tuple[str, int, int]]:
    """Name, address and size of every symbol."""
    sections = _sections(program)
    found = []
    for _, kind, _, _, start, size, link, *_ in sections:
        if kind == 2:  # the symbol table; `link` is the section of its names
            texts = sections[link][4]
            for at in range(start, start + size, 16):
                name, value, length = struct.unpack_from("<3I", program, at)
                end = program.index(b"\0", texts + name)
                found.append((program[texts + name : end].decode(), value, length))
    return found


def _sections(code: bytes) -> list[tuple[int, ...]]:
    """The section headers of an ELF file of 32 bits."""
    (table,) = struct.unpack_from("<I", code, 32)
    entry_bytes, count = struct.unpack_from("<HH", code, 46)
    return [struct.unpack_from("<10I", code, table + index * entry_bytes) for index in range(count)]
