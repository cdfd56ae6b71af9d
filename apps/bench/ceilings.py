"""What the machine itself can do: bytes read a second, and multiply-accumulates a second.

Measured by loops that do nothing else, in the same run as what they are the ceiling of. Reading is
tried in several patterns, since which one a memory controller likes best differs; the best counts.
Some ask for lines ahead, as the kernels do: what a kernel may, its ceiling must. They take turns
for about a second, as decode takes: a moment's best is what a machine does that nobody shares.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpu.codegen.emit import Module, object_code
from cpu.codegen.image import Image, link_image
from cpu.codegen.isa import Isa
from cpu.codegen.language import I8, I64, POINTER, Code, Value
from cpu.codegen.tables import isa_for, refuses
from edge.target import Target, this_machine

# What a thread reads: beyond any cache, and in a few hundredths of a second.
BUFFER_BYTES = 512 << 20

# Turns of the patterns.
_SWEEPS = 6

# A rate is timed over about this long, after a first guess.
_RATE_S = 0.05
_FIRST_TURNS = 10_000

_LINE = 64
_DOT_SUMS = 12

# Writes a loop: its input, its output, and how much of it.
Write = Callable[[Code, Value, Value, Value], None]


@dataclass(frozen=True)
class Pattern:
    """Equal streams of a buffer read side by side, `lines` cache lines of each a turn.

    Lines are asked for `ahead_bytes` before they are read, unless 0.
    """

    streams: int
    lines: int
    ahead_bytes: int = 0

    @property
    def name(self) -> str:
        return f"read_{self.streams}_{self.lines}_{self.ahead_bytes}"

    def write(self, code: Code, buffer: Value, out: Value, size: Value) -> None:
        """Sum up a buffer of `size` bytes."""
        part = size // self.streams
        sums = [code.variable(code.constant(I64.of(8), 0)) for _ in range(8)]
        with code.loop(0, part, _LINE * self.lines) as position:
            for stream in range(self.streams):
                start = code.offset(buffer, part * stream + position)
                for line in range(self.lines if self.ahead_bytes else 0):
                    code.prefetch(start, self.ahead_bytes + _LINE * line, keep=False)
                for line in range(self.lines):
                    total = sums[(stream * self.lines + line) % 8]
                    total.set(total.get() + code.load(I64.of(8), start, _LINE * line))
        code.store(_sum([total.get() for total in sums]), out)


PATTERNS = (
    *(Pattern(1, 1), Pattern(2, 1), Pattern(4, 4), Pattern(8, 1)),
    *(Pattern(1, 4, 6144), Pattern(2, 4, 6144), Pattern(4, 4, 2048)),
)


@dataclass(frozen=True)
class Rate:
    """A loop of independent multiplications: what a turn of it multiplies, and its body."""

    name: str
    macs_per_turn: int
    write: Write


def _dot_rate(vector_bytes: int) -> Rate:
    """8-bit dot products on vectors: so many sums that none waits for its last product."""

    def write(code: Code, data: Value, out: Value, turns: Value) -> None:
        zero = code.constant(code.isa.dot_sums, 0)
        sums = [code.variable(zero) for _ in range(_DOT_SUMS)]
        left, right = (code.load(I8.of(vector_bytes), data, _LINE * i) for i in range(2))
        with code.loop(0, turns):
            for total in sums:  # of int16 they overflow, and take as long
                total.set(code.isa.dot(code, total.get(), left, right))
        code.store(_sum([total.get() for total in sums]), out)

    return Rate("dot_int8", _DOT_SUMS * vector_bytes, write)


def _tile_rate(name: str, intrinsic: str, macs: int) -> Rate:
    """Four products of tiles in turn: each waits for itself alone."""

    def write(code: Code, data: Value, out: Value, turns: Value) -> None:
        row_bytes = code.constant(I64, _LINE)
        code.intrinsic("llvm.x86.ldtilecfg", None, data)
        for tile in range(8):
            code.intrinsic("llvm.x86.tilezero", None, tile)
        with code.loop(0, turns):
            for a in range(2):
                for b in range(2):
                    code.intrinsic(intrinsic, None, 2 * a + b, 4 + a, 6 + b)
        for tile in range(4):
            code.intrinsic("llvm.x86.tilestored64", None, tile, out, row_bytes)
        code.intrinsic("llvm.x86.tilerelease", None)

    return Rate(name, 4 * macs, write)


def rates_of(isa: Isa) -> list[Rate]:
    """The matrix units of an instruction set; tiles are of 16 rows by 64 bytes."""
    tiles = [
        _tile_rate("amx_int8", "llvm.x86.tdpbssd", 16 * 16 * 64),
        _tile_rate("amx_bf16", "llvm.x86.tdpbf16ps", 16 * 16 * 32),
    ]
    return [_dot_rate(isa.vector_bytes), *(tiles if isa.tiles else [])]


def _sum(values: Sequence[Value]) -> Value:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


class Ceilings:
    """The loops for an instruction set, compiled, with a buffer for each of `threads` threads.

    `outs` take what the loops compute, so that no compiler leaves them out.
    """

    def __init__(self, isa: Isa, threads: int) -> None:
        self.threads = threads
        self.rates = rates_of(isa)
        module = Module(isa)
        for pattern in PATTERNS:
            module.function(pattern.name, [POINTER, POINTER, I64], pattern.write)
        for rate in self.rates:
            module.function(rate.name, [POINTER, POINTER, I64], rate.write)
        if isa.tiles:
            _allow_tiles()
        self._loaded = Image.of(link_image(object_code(module)))
        size = buffer_bytes(threads)
        self.buffers = [np.ones(size, np.uint8) for _ in range(threads)]
        self.outs = [np.zeros(4096, np.uint8) for _ in range(threads)]
        self._tiles = tile_configuration()

    def read_bandwidth_gb_s(self, threads: int) -> float:
        """Bytes read by that many threads at once, in 10^9 a second: the best of the patterns."""
        size = self.buffers[0].size
        seconds = dict.fromkeys(PATTERNS, 0.0)
        for _ in range(_SWEEPS):
            for pattern in PATTERNS:
                seconds[pattern] += self.time(pattern.name, threads, self.buffers, size)
        return _SWEEPS * threads * size / min(seconds.values()) / 1e9

    def mac_s(self, rate: Rate, threads: int) -> float:
        """Multiply-accumulates a second of that many threads at once."""
        data = [self._tiles] * threads
        turns = _FIRST_TURNS
        guess = self.time(rate.name, threads, data, turns)
        turns = max(int(turns * _RATE_S / guess), turns)
        seconds = min(self.time(rate.name, threads, data, turns) for _ in range(3))
        return threads * turns * rate.macs_per_turn / seconds

    def time(self, name: str, threads: int, data: Sequence[NDArray[np.uint8]], count: int) -> float:
        """Seconds from the first thread's start to the last one's end."""
        pointer = ctypes.c_void_p
        function = self._loaded.function(name, pointer, pointer, ctypes.c_int64)
        spans: list[tuple[float, float]] = []
        barrier = threading.Barrier(threads)

        def work(index: int) -> None:
            barrier.wait()
            began = time.perf_counter()
            function(data[index].ctypes.data, self.outs[index].ctypes.data, count)
            spans.append((began, time.perf_counter()))

        workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return max(end for _, end in spans) - min(began for began, _ in spans)


def make_ceilings(target: Target, threads: int) -> Ceilings | None:
    """Ceilings for code of a CPU target (of this machine, for `ref`); None where this version has
    no code for it."""
    if target.kind != "cpu":
        target = this_machine().target()
    return None if refuses(target) else Ceilings(isa_for(target), threads)


def buffer_bytes(threads: int, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes of each thread's buffer: BUFFER_BYTES, or less where a quarter of what memory is free
    would not hold them."""
    lines = meminfo.read_text(encoding="utf-8").splitlines() if meminfo.exists() else []
    free = next((int(line.split()[1]) << 10 for line in lines if "MemAvailable" in line), 1 << 30)
    most = free // 4 // threads
    return min(BUFFER_BYTES, most >> 20 << 20)


def tile_configuration() -> NDArray[np.uint8]:
    """AMX: palette 1, eight tiles of 16 rows of 64 bytes (Intel's manual, LDTILECFG)."""
    config = np.zeros(128, np.uint8)
    config[0] = 1
    config[16:32].view(np.uint16)[:] = 64
    config[48:56] = 16
    return config


def _allow_tiles() -> None:
    """Ask Linux for the tile registers: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)."""
    libc: Any = ctypes.CDLL(None)
    libc.syscall(158, 0x1023, 18)
