"""Planes to tiles of a matrix unit, emulated, against their twin, bit for bit."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import UnknownFormat
from edge.formats import Format
from edge.planes import dequantize, pack, tile_count
from npu.hvx.dequantize import (
    UNIT,
    Kind,
    dequantize_kernel,
    kinds_of,
    rows_of,
    tile_bytes,
    tiles_of,
)
from tests.cpu.harness import random_weights
from tests.npu.hvx.harness import FORMATS, Device, emulated, require_emulator

CASES = [(text, kind) for text in FORMATS for kind in kinds_of(Format.parse(text))]


@cache
def tile_device() -> Device:
    require_emulator()
    kernels = [dequantize_kernel(Format.parse(text), kind) for text, kind in CASES]
    return Device(emulated(kernels))


def run(form: Format, kind: Kind, weights) -> np.ndarray:
    """What the kernel makes of weights, as rows."""
    device = tile_device()
    rows, width = weights.codes.shape
    parts = pack(form, weights)
    tiles, columns = tile_count(rows), -(-width // UNIT)
    size = 2 * tiles * columns * tile_bytes(kind)
    nothing = np.zeros(1, np.uint8)
    slots = {
        "codes": device.put(parts["codes" if form.bits == 8 else "planes"]),
        "scales": device.put(parts["scales"]),
        "zeros": device.put(parts.get("zeros", nothing)),
        "out": device.room(size),
        "width": width,
        "tiles": tiles,
    }
    device.run(dequantize_kernel(form, kind), slots, threads=2)
    assert device.undamaged(slots["out"], size)
    together = 4 if kind == "int8" else 2
    shape = 2 * tiles, columns, UNIT // together, UNIT, together
    dtype = np.int8 if kind == "int8" else np.uint16
    return rows_of(device.emulator.read(slots["out"], dtype, shape), rows)


@pytest.mark.parametrize(("text", "kind"), CASES)
@settings(max_examples=6)
@given(
    rows=st.integers(1, 150),
    width=st.integers(1, 300),
    power=st.integers(-24, 8),
    seed=st.integers(0, 99),
)
def test_any_shape_is_as_the_twin(
    text: str, kind: Kind, rows: int, width: int, power: int, seed: int
) -> None:
    """Scales as small as float16 has them, of either sign, and as large as nearly overflow."""
    form, rng = Format.parse(text), np.random.default_rng(seed)
    weights = random_weights(form, rows, width, rng)
    signs = rng.choice([-1, 1], weights.scales.shape)
    spread = 2.0 ** (power + rng.integers(-2, 3, weights.scales.shape))
    weights.scales[:] = (weights.scales * signs * spread).astype(weights.scales.dtype)
    wanted = rows_of(tiles_of(form, weights, kind), rows)
    made = run(form, kind, weights)
    np.testing.assert_array_equal(made.view(wanted.dtype), wanted)
    if kind == "f16":
        np.testing.assert_array_equal(made, wanted.view(np.uint16))  # signs of zeros, too


@pytest.mark.parametrize("text", ["w2g64", "w3g32a", "w4g64a", "w4g128"])
def test_scaled_tiles_are_the_weights(text: str) -> None:
    form = Format.parse(text)
    weights = random_weights(form, 70, 200, np.random.default_rng(4))
    made = rows_of(tiles_of(form, weights, "f16"), 70)
    np.testing.assert_array_equal(made[:, :200], dequantize(form, weights).astype(np.float16))
    assert not made[:, 200:].any()


def test_bytes_less_zeros_do_not_fit_bytes() -> None:
    with pytest.raises(UnknownFormat, match="w8g32a as tiles of int8"):
        dequantize_kernel(Format.parse("w8g32a"), "int8")
