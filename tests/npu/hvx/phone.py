"""A phone's FastRPC library, stood in for, with the skel in an emulated Hexagon behind it."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cpu.codegen.piped import system_source
from edge.formats import Format
from edge.planes import TILE, Quantized, pack, tile_count
from npu.hvx import build, fastrpc, gemv, skel, tables
from npu.hvx.elf import file_name
from npu.hvx.floats import VECTOR_LANES
from npu.hvx.isa import EMULATED, VECTOR_BYTES, table
from npu.hvx.protocol import Argument, Call, Place, input_place, output_place
from npu.hvx.weights import RowScales, group_of, row_scales
from tests.npu.hvx.harness import require_emulator

FORMATS = ("w1g64", "w2g64a", "w3g64", "w4g64", "w4gc", "w8g64", "ternary")

# What every kernel's work is cut into.
_PARTS = 2

_STANDIN = Path(__file__).with_name("standin")


def require_standin() -> None:
    """Skip where the stand-in cannot be built or run."""
    require_emulator()
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("the stand-in for the phone's FastRPC library is for Linux on x86-64")


@cache
def phone(contexts: int = 1, formats: tuple[str, ...] = FORMATS) -> tuple[ctypes.CDLL, Path]:
    """A stand-in, and the folder of its skel libraries: the emulator's, for these formats.

    Its device has so many vector contexts, and threads for them.
    """
    folder = Path(mkdtemp())
    library = shutil.copy(standin(), folder)  # one that is loaded twice would have one device
    source = f"#define CONTEXTS {contexts}\n{system_source()}"
    source += (_STANDIN / "device.c").read_text(encoding="utf-8")
    device = build.compiled(table(EMULATED), source)
    objects = skel.objects(EMULATED, [Format.parse(form) for form in formats])
    build.program([device, *objects], folder / file_name(EMULATED))
    return fastrpc.load([str(library)]), folder


@cache
def standin() -> Path:
    """The stand-in for the phone's FastRPC library, built."""
    library = Path(mkdtemp()) / "libcdsprpc.so"
    options = ("-target", "x86_64-linux-gnu", "-shared", "-fPIC", "-O1", "-Wall", "-Werror")
    command = [sys.executable, "-m", "ziglang", "cc", *options, "-o", str(library)]
    subprocess.run([*command, str(_STANDIN / "library.c")], check=True, capture_output=True)
    return library


def opened(contexts: int = 1, formats: tuple[str, ...] = FORMATS) -> fastrpc.Session:
    library, folder = phone(contexts, formats)
    return fastrpc.Session(folder, library)


@dataclass(frozen=True)
class Layout:
    """Arrays one after the other in one buffer, each where vectors may be."""

    starts: Mapping[str, int]
    byte_count: int

    @staticmethod
    def of(sizes: Mapping[str, int]) -> Layout:
        starts, at = {}, 0
        for name, size in sizes.items():
            starts[name] = at
            at += -(-size // VECTOR_BYTES) * VECTOR_BYTES
        return Layout(starts, at)

    def places(self, base: Place) -> dict[str, Argument]:
        return {
            name: Place(base.reference, base.offset + start) for name, start in self.starts.items()
        }


@dataclass(frozen=True)
class Product:
    """A matrix-vector product as a run: calls, and the arrays that come and go."""

    calls: list[Call]
    inputs: list[NDArray[Any]]
    outputs: list[NDArray[Any]]


class Weights:
    """A tensor's arrays on the device, attached for reading alone."""

    def __init__(self, session: fastrpc.Session, form: Format, weights: Quantized) -> None:
        self.form, self.weights = form, weights
        rows = len(weights.codes)
        parts = pack(form, weights)
        self.scales: RowScales = row_scales(form, parts, rows)
        bias = np.zeros(tile_count(rows) * TILE, np.float32)
        arrays = {"codes": parts["codes" if form.bits == 8 else "planes"], "bias": bias}
        arrays["units"] = self.scales.units
        if self.scales.steps is not None:
            arrays["steps"] = self.scales.steps
        if self.scales.offsets is not None:
            arrays["offsets"] = self.scales.offsets
        layout = Layout.of({name: array.nbytes for name, array in arrays.items()})
        self.buffer = session.allocate(layout.byte_count)
        for name, array in arrays.items():
            self.buffer.array(array.dtype, array.shape, layout.starts[name])[...] = array
        self.places = layout.places(session.attach(self.buffer))


class Scratch:
    """Memory that only the device uses between the calls of a product."""

    def __init__(self, session: fastrpc.Session, width: int, group: int) -> None:
        blocks = tables.block_count(width)
        layout = Layout.of(
            {
                "values": 2 * blocks * tables.BLOCK,
                "peaks": 4 * blocks,
                "sums": VECTOR_BYTES * blocks * tables.BLOCK // group,
                "tables": blocks * tables.TABLE_BYTES,
                "bytes": 2 * blocks * tables.BLOCK,
                "scratch": _PARTS * gemv.SCRATCH_BYTES,
            }
        )
        self.buffer = session.allocate(layout.byte_count)
        self.places = layout.places(session.attach(self.buffer, writable=True))


def product(weights: Weights, scratch: Scratch, x: NDArray[np.float32]) -> Product:
    """The calls that multiply a tensor by one row."""
    form, tiles = weights.form, tile_count(len(weights.weights.codes))
    one, blocks = tables.ratio_one(form.bits, len(x)), tables.block_count(len(x))
    shared: dict[str, Argument] = {**weights.places, **scratch.places}
    shared |= {"x": input_place(0), "out": output_place(0), "sums_out": output_place(1)}
    shared |= {"width": len(x), "groups": tables.BLOCK // group_of(form), "one": one}
    shared |= {"blocks": blocks, "tiles": tiles}
    shared |= {"factor": gemv.factor_of(one)}
    last = tables.split_kernel() if form.bits == 8 else tables.tables_kernel()
    kernels = [tables.quantize_kernel(), last, gemv.lookup_kernel(form)]
    return Product(
        [call(kernel.name, kernel.slots, shared) for kernel in kernels],
        [np.pad(x, (0, -len(x) % VECTOR_LANES))],
        [np.zeros(tiles * TILE, np.float32), np.zeros(tiles * TILE, np.int32)],
    )


def call(name: str, slots: Iterable[str], shared: Mapping[str, Argument]) -> Call:
    return Call(name, {slot: shared[slot] for slot in slots if slot in shared}, parts=_PARTS)


def by_row(integers: NDArray[np.int32], rows: int) -> NDArray[np.int32]:
    """A kernel's integers, even rows of a tile first, in the rows' order."""
    return integers.reshape(-1, 2, TILE // 2).transpose(0, 2, 1).reshape(-1)[:rows]
