"""The compiled kernels of a graph: made for this machine and cached, or taken from a bundle."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cpu.codegen.cache import cache_folder, keep, key_of, sources_digest
from cpu.codegen.image import BadImage, Image, link_image
from cpu.kernels.families import COMMON, families, interface
from cpu.kernels.kernel import Kernel
from cpu.kernels.step import NAME
from edge.errors import MissingDependency, UnknownTarget
from edge.formats import Format
from edge.watch import listening

if TYPE_CHECKING:
    from cpu.codegen.isa import Isa


# Among an artifact's tools.
INTERFACE = "kernels"


class Code(Protocol):
    """Machine code in this process."""

    def address(self, name: str) -> int: ...


class Native:
    """Kernels by name, and the step that calls them, of one or several pieces of machine code."""

    def __init__(
        self, codes: Sequence[Code], *, matrix_unit: bool, lookup_bits: Collection[int] = ()
    ) -> None:
        if matrix_unit and (reason := refused_tiles()):
            raise UnknownTarget(reason, "use --target cpu:x86_64,vnni")
        self._codes = codes  # keeps the machine code alive
        self.matrix_unit = matrix_unit
        self.lookup_bits = lookup_bits
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
    matrix_unit = isa.tiles is not None
    made = families(formats, matrix_unit=matrix_unit, lookup_bits=isa.lookup_bits)
    listening().start("compiling", _steps(made), "steps")
    images = [_image(isa, name, kernels) for name, kernels in made.items()]
    return Native(images, matrix_unit=matrix_unit, lookup_bits=isa.lookup_bits)


def _image(isa: Isa, family: str, kernels: Sequence[Kernel]) -> Image:
    """A family's code. From the cache it comes without the compiler, and without writing it."""
    import llvmlite  # its version alone: the compiler is another part of it

    facts = [family, isa.name, sources_digest(), llvmlite.__version__]
    path = cache_folder() / f"{key_of(facts)}.code"
    with contextlib.suppress(OSError, BadImage):
        image = Image.open(path)
        listening().advance(2 * len(kernels))
        return image

    content = link_image(_object(isa, family, kernels))
    keep(path, content)
    return Image.of(content)


def _steps(made: Mapping[str, Sequence[Kernel]]) -> int:
    """Each kernel is written, and then compiled with its family."""
    return 2 * sum(map(len, made.values()))


def _object(isa: Isa, family: str, kernels: Sequence[Kernel]) -> bytes:
    """A family's object code; the step that calls kernels is with those of every model."""
    from cpu.codegen.emit import Module, object_code
    from cpu.kernels.step import emit_step

    module = Module(isa)
    for kernel in kernels:
        kernel.emit(module)
        listening().advance(1)
    if family == COMMON:
        emit_step(module)
    made = object_code(module)
    listening().advance(len(kernels))
    return made


def compile_library(formats: Iterable[Format], isa: Isa, out: Path) -> dict[str, str]:
    """Compile the kernels into one library that calls no other.

    Returns the tools' versions, and under INTERFACE what callers must agree with.
    """
    if importlib.util.find_spec("llvmlite") is None:
        raise MissingDependency("compiling ahead needs llvmlite", 'pip install "lutra[convert]"')
    import llvmlite

    from cpu.codegen.link import shared_library

    forms, matrix_unit = tuple(formats), isa.tiles is not None
    made = families(forms, matrix_unit=matrix_unit, lookup_bits=isa.lookup_bits)
    listening().start(f"compiling for {isa.name}", _steps(made), "steps")
    shared_library((_object(isa, *family) for family in made.items()), out)
    return {
        "llvmlite": llvmlite.__version__,
        INTERFACE: interface(forms, matrix_unit=matrix_unit, lookup_bits=isa.lookup_bits),
    }


def refused_tiles() -> str:
    """Ask Linux for the tile registers, which it gives a process that asks; why it refuses."""
    system_call = ctypes.CDLL(None, use_errno=True).syscall
    if system_call(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0:
        return ""
    return f"the system refuses the tile registers ({os.strerror(ctypes.get_errno())})"


# arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
