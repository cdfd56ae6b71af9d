"""A Hexagon on the workstation: kernels in a qemu-hexagon process that stays, spoken to by pipes.

What it computes is what a device computes, to the bit; how long it takes says nothing.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
import subprocess
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import LutraError, MissingDependency

QEMU = "qemu-hexagon"
CURE = "apt-get install qemu-user"

_ALLOCATE, _WRITE, _READ, _MAP, _RUN = range(1, 6)
_ALIGNMENT = 128


def missing() -> str:
    """Why nothing can be emulated here; empty where it can."""
    return "" if shutil.which(QEMU) else f"no {QEMU} on the path"


class Emulator:
    """A running program; memory that it gave is kept until `close`.

    Raises MissingDependency without qemu.
    """

    def __init__(self, program: Path) -> None:
        if reason := missing():
            raise MissingDependency(f"emulating Hexagon: {reason}", CURE)
        self.symbols = symbols(program.read_bytes())
        command = [QEMU, str(program)]
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._end = weakref.finalize(self, _end, self._process)

    def __enter__(self) -> Emulator:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._end()

    def allocate(self, byte_count: int) -> int:
        """Address of new memory, all zeros. Raises LutraError where there is no more."""
        self._send(_ALLOCATE, max(byte_count, 1))
        return self._address(f"{byte_count} bytes")

    def map_file(self, path: Path) -> int:
        """Address at which a file lies, read-only. Raises LutraError where it does not fit."""
        name = str(path.resolve()).encode()
        self._send(_MAP, len(name), path.stat().st_size, data=name)
        return self._address(str(path))

    def write(self, address: int, values: NDArray[Any]) -> None:
        data = np.ascontiguousarray(values).tobytes()
        self._send(_WRITE, address, len(data), data=data)

    def put(self, values: NDArray[Any]) -> int:
        """Address of a copy of `values`."""
        address = self.allocate(values.nbytes)
        self.write(address, values)
        return address

    def read(self, address: int, kind: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        dtype = np.dtype(kind)
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        self._send(_READ, address, size)
        return np.frombuffer(self._receive(size), dtype).reshape(shape).copy()

    def call(self, name: str, slots: Sequence[int], threads: int = 1) -> None:
        """Run one kernel with its arguments, by each of `threads` threads in turn."""
        arguments = self.put(np.array(slots, np.int64))
        table = self.put(np.array([self.symbols[name], arguments, threads], np.uint32))
        self.run(table, 1)

    def run(self, table: int, calls: int) -> None:
        """Run the first `calls` rows of a table: kernel, arguments, threads as 32-bit words."""
        self._send(_RUN, table, calls)
        self._receive(4)

    def _send(self, what: int, *numbers: int, data: bytes = b"") -> None:
        words = struct.pack("<4I", what, *numbers, *(0,) * (3 - len(numbers)))
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(words + data)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def _receive(self, size: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        if len(data) != size:
            raise self._ended()
        return data

    def _address(self, what: str) -> int:
        (address,) = struct.unpack("<I", self._receive(4))
        if not address:
            raise LutraError(
                f"emulated Hexagon: no room for {what}", "its memory is 4 GB: use a smaller model"
            )
        return int(address)

    def _ended(self) -> LutraError:
        assert self._process.stderr is not None
        said = self._process.stderr.read().decode(errors="replace").strip()[-500:]
        status = self._process.wait()
        return LutraError(f"emulated Hexagon ended with {status}: {said}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close the pipes of a process, at which it ends, and wait for that."""
    for pipe in (process.stdin, process.stdout, process.stderr):
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
    process.wait()


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
