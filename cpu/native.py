"""The compiled kernels of a graph: made for this machine and cached, or taken from a bundle."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cpu.kernels.families import COMMON, families
from cpu.kernels.step import NAME
from edge.errors import MissingDependency, UnknownTarget
from edge.formats import Format

if TYPE_CHECKING:
    from cpu.codegen.isa import Isa


class Code(Protocol):
    """Machine code in this process."""

    def address(self, name: str) -> int: ...


class Native:
    """Kernels by name, and the step that calls them, of one or several pieces of machine code."""

    def __init__(self, codes: Sequence[Code], *, matrix_unit: bool) -> None:
        if matrix_unit and (reason := refused_tiles()):
            raise UnknownTarget(reason, "use --target cpu:x86_64,vnni")
        self._codes = codes  # keeps the machine code alive
        self.matrix_unit = matrix_unit
        kind = ctypes.CFUNCTYPE(
            None,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int64,
        )
        self._step: Callable[..., None] = kind(self.address(NAME))
        self._give_way = ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value

    def step(self, table: int, calls: int, meeting: int, thread: int, threads: int) -> None:
        """One thread's part of a step; see `kernels.step`."""
        self._step(table, calls, meeting, self._give_way, thread, threads)

    def address(self, name: str) -> int:
        """Address of a kernel. Raises KeyError."""
        for code in self._codes:
            try:
                return code.address(name)
            except KeyError:
                continue
        raise KeyError(name)


def compile_native(formats: Iterable[Format], isa: Isa) -> Native:
    """Compile the kernels for tensors of these formats, or take them from the cache."""
    from cpu.codegen.emit import Loaded, Module, object_code
    from cpu.kernels.step import emit_step

    codes = []
    for name, kernels in families(formats, matrix_unit=isa.tiles is not None).items():
        module = Module(isa)
        for kernel in kernels:
            kernel.emit(module)
        if name == COMMON:
            emit_step(module)
        codes.append(Loaded(isa, object_code(module)))
    return Native(codes, matrix_unit=isa.tiles is not None)


def compile_library(formats: Iterable[Format], isa: Isa, out: Path) -> dict[str, str]:
    """Compile the kernels into one library that calls no other; returns the tools' versions."""
    if importlib.util.find_spec("llvmlite") is None:
        raise MissingDependency("compiling ahead needs llvmlite", 'pip install "lutra[convert]"')
    import llvmlite

    from cpu.codegen.emit import Module, object_code
    from cpu.codegen.link import shared_library
    from cpu.kernels.step import emit_step

    module = Module(isa)
    for kernels in families(formats, matrix_unit=isa.tiles is not None).values():
        for kernel in kernels:
            kernel.emit(module)
    emit_step(module)
    shared_library(object_code(module), out)
    return {"llvmlite": llvmlite.__version__}


def refused_tiles() -> str:
    """Ask Linux for the tile registers, which it gives a process that asks; why it refuses."""
    system_call = ctypes.CDLL(None, use_errno=True).syscall
    if system_call(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0:
        return ""
    return f"the system refuses the tile registers ({os.strerror(ctypes.get_errno())})"


# arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
