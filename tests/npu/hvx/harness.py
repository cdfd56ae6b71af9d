"""Kernels in an emulated Hexagon: how tests build, feed and read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cpu.kernels.kernel import Kernel, float_slot
from edge.formats import Format
from edge.planes import TILE, Quantized, pack, tile_count
from npu.hvx import build, emulator, gemv, inner, tables
from npu.hvx.isa import EMULATED, table
from npu.hvx.weights import RowScales, group_of, row_scales

FORMATS = (
    *("w1g32a", "w1g64", "w1gc", "w1gca"),
    *("w2g32", "w2g64", "w2g64a", "w2g128", "w2g128a", "w2gc", "w3g32", "w3g32a", "w3g64"),
    *("w3g128a", "w3gc", "w3gca", "w4g32"),
    *("w4g32a", "w4g64", "w4g64a", "w4g128", "w4g128a", "w4gc", "w4gca"),
    *("w8g64", "w8g32a", "w8gc", "ternary", "ternaryg64"),
)

# What lies around arrays, so that reading it spoils results: NaN as a float.
_ZONE = np.frombuffer(b"\xfb\xfc\xfd\xff" * 32, np.uint8)


def require_emulator() -> None:
    """Skip where there is no emulator or no linker."""
    pytest.importorskip("ziglang", reason="Hexagon code is linked by it")
    if reason := emulator.missing():
        pytest.skip(f"{reason}: {emulator.CURE}")


def program(objects: Iterable[bytes]) -> Path:
    """A program of objects, beside what every program has."""
    isa = table(EMULATED)
    path = Path(mkdtemp()) / "program"
    build.program([build.start_object(isa), build.runtime_object(isa), *objects], path)
    return path


def emulated(kernels: Iterable[Kernel], objects: Iterable[bytes] = ()) -> emulator.Emulator:
    """An emulator with these kernels."""
    code = build.kernel_object(table(EMULATED), kernels)
    return emulator.Emulator(program([code, *objects]))


@dataclass(frozen=True)
class Device:
    """An emulator in which arrays have red zones behind them."""

    emulator: emulator.Emulator

    def put(self, values: NDArray[Any]) -> int:
        flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        return self.emulator.put(np.concatenate([flat, _ZONE]))

    def run(self, kernel: Kernel, values: Mapping[str, int], threads: int = 1) -> None:
        slots = [values[slot] for slot in kernel.slots]
        self.emulator.call(kernel.name, slots, threads)

    def room(self, byte_count: int) -> int:
        return self.put(np.zeros(byte_count, np.uint8))

    def undamaged(self, address: int, byte_count: int) -> bool:
        """Whether nothing was written behind an array."""
        return bool(
            (self.emulator.read(address + byte_count, np.uint8, _ZONE.shape) == _ZONE).all()
        )


@dataclass(frozen=True)
class Product:
    """What a lookup kernel left, and what its twin says."""

    integers: NDArray[np.int32]
    wanted: NDArray[np.int32]
    numbers: NDArray[np.float32]
    near: NDArray[np.float32]


def prepare(device: Device, x: NDArray[np.float32], group: int, bits: int) -> dict[str, int]:
    """Run the kernels that make tables of a row; returns what the lookup kernels read."""
    blocks, one = tables.block_count(len(x)), tables.ratio_one(bits, len(x))
    values = {
        "x": device.put(x),
        "values": device.room(2 * blocks * tables.BLOCK),
        "peaks": device.room(4 * blocks),
        "sums": device.room(128 * blocks * tables.BLOCK // group),
        "tables": device.room(blocks * tables.TABLE_BYTES),
        "bytes": device.room(2 * blocks * tables.BLOCK),
        "width": len(x),
        "groups": tables.BLOCK // group,
        "one": one,
        "blocks": blocks,
        "factor": float_slot(gemv.factor_of(one)),
    }
    for kernel in PREPARING:
        device.run(kernel, values, threads=2)
    return values


def multiply(
    device: Device, kernel: Kernel, form: Format, weights: Quantized, x: NDArray[np.float32]
) -> Product:
    """Run a lookup kernel on weights and one row of activations."""
    rows = len(weights.codes)
    tiles, parts = tile_count(rows), pack(form, weights)
    scales = row_scales(form, parts, rows)
    values = prepare(device, x, group_of(form), form.bits)
    values |= weight_slots(device, form, parts, scales)
    values |= {
        "bias": device.put(np.zeros(tiles * TILE, np.float32)),
        "out": device.room(4 * tiles * TILE),
        "sums_out": device.room(4 * tiles * TILE),
        "tiles": tiles,
        "scratch": device.room(2 * gemv.SCRATCH_BYTES),
    }
    device.run(kernel, values, threads=2)
    for name in ("out", "sums_out"):
        assert device.undamaged(values[name], 4 * tiles * TILE), name
    twin = tables.activations(x, group_of(form), values["one"])
    held = device.emulator.read(values["sums_out"], np.int32, (tiles, 2, TILE // 2))
    return Product(
        held.transpose(0, 2, 1).reshape(-1)[:rows],
        gemv.lookup(form, weights, scales, twin),
        device.emulator.read(values["out"], np.float32, (rows,)),
        gemv.products(form, weights, scales, twin, values["one"]),
    )


def weight_slots(
    device: Device, form: Format, parts: Mapping[str, NDArray[Any]], scales: RowScales
) -> dict[str, int]:
    nothing = np.zeros(1, np.int16)
    return {
        "codes": device.put(parts["codes" if form.bits == 8 else "planes"]),
        "steps": device.put(nothing if scales.steps is None else scales.steps),
        "offsets": device.put(nothing if scales.offsets is None else scales.offsets),
        "units": device.put(scales.units),
    }


PREPARING = (tables.quantize_kernel(), tables.tables_kernel(), tables.split_kernel())


@cache
def lookup_device() -> Device:
    """An emulator with the lookup kernels of every format, for all tests of this run."""
    forms = [Format.parse(form) for form in FORMATS]
    loops = [build.assembled(table(EMULATED), text) for text in inner.assemblies(forms)]
    return Device(emulated([*PREPARING, *map(gemv.lookup_kernel, forms)], loops))
