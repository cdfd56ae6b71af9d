"""A processor on the workstation: kernels in an emulator's process, spoken to by pipes."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from edge.errors import LutraError

_HERE = Path(__file__).parent

_ALLOCATE, _WRITE, _READ, _MAP, _RUN = range(1, 6)


def system_source() -> str:
    """C for programs that no library is linked with."""
    return (_HERE / "system.c").read_text(encoding="utf-8")


def source() -> str:
    """The program's C, which kernels are linked with."""
    return system_source() + (_HERE / "piped.c").read_text(encoding="utf-8")


class Piped:
    """A running program of `piped.c`; memory that it gave is kept until `close`.

    `name` is what errors call it, `word` how `struct` and NumPy write an address of it.
    """

    def __init__(
        self, command: Sequence[str], name: str, symbols: Mapping[str, int], word: Literal["I", "Q"]
    ) -> None:
        self.symbols, self._name, self._word = symbols, name, word
        self.word_type = np.dtype(word)
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._end = weakref.finalize(self, _end, self._process)

    def __enter__(self) -> Self:
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
        table = self.put(np.array([self.symbols[name], arguments, threads], self.word_type))
        self.run(table, 1)

    def run(self, table: int, calls: int) -> None:
        """Run the first `calls` rows of a table: kernel, arguments, threads as words."""
        self._send(_RUN, table, calls)
        self._receive(self.word_type.itemsize)

    def _send(self, what: int, *numbers: int, data: bytes = b"") -> None:
        words = struct.pack(f"<4{self._word}", what, *numbers, *(0,) * (3 - len(numbers)))
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
        (address,) = struct.unpack(f"<{self._word}", self._receive(self.word_type.itemsize))
        if not address:
            raise LutraError(
                f"emulated {self._name}: no room for {what}",
                "a Hexagon has 4 GB, others what the machine has: use a smaller model",
            )
        return int(address)

    def _ended(self) -> LutraError:
        assert self._process.stderr is not None
        said = self._process.stderr.read().decode(errors="replace").strip()[-500:]
        status = self._process.wait()
        return LutraError(f"emulated {self._name} ended with {status}: {said}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close the pipes of a process, at which it ends, and wait for that."""
    for pipe in (process.stdin, process.stdout, process.stderr):
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
    process.wait()
