"""An ARM64 processor on the workstation: a bundle's kernels in qemu-aarch64, without a system.

The program is static and needs no library, so nothing of an ARM64 Linux has to be installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cpu.codegen.cache import cache_folder
from cpu.codegen.piped import Piped, source
from cpu.kernels.families import families
from cpu.memory import Memory
from edge.bundle import Bundle
from edge.errors import LutraError, MissingDependency
from edge.formats import Format
from edge.planes import TILE, StoredTensor

if TYPE_CHECKING:
    from cpu.codegen.isa import Isa

QEMU = "qemu-aarch64"
_C_OPTIONS = ("-O2", "-ffreestanding", "-fno-builtin", "-fno-stack-protector", "-std=gnu11")


def require() -> None:
    """Raises MissingDependency where code cannot be made, or not be emulated."""
    packages = [name for name in ("llvmlite", "ziglang") if importlib.util.find_spec(name) is None]
    if packages:
        raise MissingDependency(
            f"ARM64 code needs {' and '.join(packages)}", 'pip install "lutra[ahead]"'
        )
    if shutil.which(QEMU) is None:
        raise MissingDependency(
            f"emulating ARM64: no {QEMU} on the path", "apt-get install qemu-user"
        )


def start(isa: Isa, formats: Iterable[Format]) -> Piped:
    """A running emulator with the kernels for tensors of these formats."""
    require()
    path = _program(isa, list(formats))
    return Piped([QEMU, "-cpu", "max", str(path)], "ARM64", _symbols(path.read_bytes()), "Q")


def _program(isa: Isa, formats: list[Format]) -> Path:
    from cpu.codegen.emit import Module, object_code

    module = Module(isa)
    for family in families(formats, matrix_unit=False, lookup_bits=isa.lookup_bits).values():
        for kernel in family:
            kernel.emit(module)
    kernels, text = object_code(module), source().encode()
    path = cache_folder() / f"{hashlib.sha256(kernels + text).hexdigest()}.aarch64"
    if not path.is_file():
        with tempfile.TemporaryDirectory(dir=path.parent) as name:
            folder = Path(name)
            (folder / "kernels.o").write_bytes(kernels)
            (folder / "piped.c").write_bytes(text)
            target = ("-target", "aarch64-linux-musl")
            piped = str(folder / "piped.o")
            _zig("cc", *target, *_C_OPTIONS, "-c", str(folder / "piped.c"), "-o", piped)
            linked = ("-static", "-e", "_start", "-o", str(folder / "made"))
            _zig("ld.lld", *linked, piped, str(folder / "kernels.o"))
            (folder / "made").replace(path)
    return path


def _zig(*words: str) -> None:
    command = [sys.executable, "-m", "ziglang", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise LutraError(f"ARM64 {words[0]} failed: {done.stderr.strip()[:2000]}")


def _symbols(program: bytes) -> dict[str, int]:
    """Addresses of the names in an ELF program of 64 bits."""
    (table,) = struct.unpack_from("<Q", program, 40)
    size, count = struct.unpack_from("<HH", program, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", program, table + i * size) for i in range(count)]
    found = {}
    for _, kind, _, _, first, length, link, *_ in sections:
        if kind == 2:  # the symbol table; `link` is the section of its names
            texts = sections[link][4]
            for at in range(first, first + length, 24):
                (name,) = struct.unpack_from("<I", program, at)
                (value,) = struct.unpack_from("<Q", program, at + 8)
                end = program.index(b"\0", texts + name)
                found[program[texts + name : end].decode()] = value
    return found


class PipedMemory(Memory):
    """Buffers of an emulated processor, and a bundle's file that it maps."""

    def __init__(self, device: Piped, weights: Path) -> None:
        super().__init__()
        self._device = device
        self._weights = device.map_file(weights)
        self._places: dict[str, int] = {}

    def address(self, name: str, byte_count: int) -> int:
        if name not in self._places:
            self._places[name] = self._device.allocate(byte_count + 2 * TILE)
        return self._places[name]

    def copy(self, name: str, values: NDArray[Any]) -> int:
        address = self.address(name, 4 * (len(values) + TILE))
        self._device.write(address, values.astype(np.float32))
        return address

    def part(self, bundle: Bundle, tensor: StoredTensor, name: str) -> int:
        return self._weights + bundle.start(tensor.name, name)
