"""Cases for the kernels between float values and an NPU's codes, to the bit as NumPy has them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cpu.kernels import codes
from cpu.kernels.kernel import Kernel, float_slot
from edge.npu import spanning
from edge.planes import TILE, tile_count
from tests.cpu.calls import Case
from tests.cpu.harness import call

# Rows and widths: one, less than a vector, whole tiles, and odd ones.
SHAPES = ((1, 1), (3, 7), (5, 64), (2, 131), (7, 200))


def code_cases(threads: int) -> Iterator[tuple[Case, Kernel]]:
    """Every kernel on every shape."""
    for rows, width in SHAPES:
        for bits in codes.BITS:
            yield encode_case(bits, rows, width, threads)
            for shared in (False, True):
                yield decode_case(bits, rows, width, threads, shared=shared)
        yield add_columns_case(rows, width, threads)


def encode_case(bits: int, rows: int, width: int, threads: int) -> tuple[Case, Kernel]:
    """Values of which some are outside, one row all of them and one none."""
    rng, kernel = np.random.default_rng(width), codes.encode_kernel(bits)
    activation = spanning("x", bits, -2.0, 3.0)
    x = rng.normal(0, 2, (rows, width)).astype(np.float32)
    x[0], x[-1] = 0.3, 50.0
    clipped = np.clip(x, activation.least, activation.most)
    made = activation.encode(clipped)
    channels, cuts = np.full(x.shape, -1, np.int32), np.full(x.shape, np.nan, np.float32)
    outside = [np.flatnonzero(row) for row in x != clipped]
    listed, cut = channels.copy(), cuts.copy()
    for row, places in enumerate(outside):
        listed[row, : len(places)] = places
        cut[row, : len(places)] = (x - clipped)[row, places]
    counts = np.array([len(places) for places in outside], np.int64)
    buffers = {
        "x": _apart(x),
        "codes": np.zeros_like(made),
        "channels": channels,
        "cuts": cuts,
        "counts": np.full(rows, -1, np.int64),
    }
    slots: dict[str, int | str] = {name: name for name in buffers}
    slots |= {
        "rows": rows,
        "width": width,
        "x_stride": buffers["x"].strides[0],
        "codes_stride": made.strides[0],
        "levels": float_slot((1 << bits) - 1),
    }
    slots |= {
        n: float_slot(float(getattr(activation, n))) for n in ("scale", "zero", "least", "most")
    }
    expected = {"codes": made, "channels": listed, "cuts": cut, "counts": counts}
    name = f"encode {bits} bits {rows} x {width}"
    return Case(name, buffers, [call(kernel, slots)], threads, expected), kernel


def decode_case(
    bits: int, rows: int, width: int, threads: int, *, shared: bool
) -> tuple[Case, Kernel]:
    """Codes with a row to add for each, or one for all."""
    rng, kernel = np.random.default_rng(width), codes.decode_kernel(bits)
    activation = spanning("x", bits, -2.0, 3.0)
    made = activation.encode(rng.uniform(-2, 3, (rows, width)).astype(np.float32))
    factors, bias = rng.normal(size=(2, width)).astype(np.float32)
    added = rng.normal(size=(1 if shared else rows, width)).astype(np.float32)
    wanted = activation.decode(made) * factors + added + bias
    buffers = {
        "codes": made,
        "factors": factors,
        "bias": bias,
        "added": _apart(added),
        "out": _apart(np.zeros_like(wanted)),
    }
    slots: dict[str, int | str] = {name: name for name in buffers}
    slots |= {
        "rows": rows,
        "width": width,
        "codes_stride": made.strides[0],
        "added_stride": 0 if shared else buffers["added"].strides[0],
        "out_stride": buffers["out"].strides[0],
        "scale": float_slot(activation.scale),
        "zero": float_slot(activation.zero),
    }
    name = f"decode {bits} bits {rows} x {width}, shared {shared}"
    return Case(name, buffers, [call(kernel, slots)], threads, {"out": _apart(wanted)}), kernel


def add_columns_case(rows: int, outputs: int, threads: int) -> tuple[Case, Kernel]:
    """Lists of none to many columns; what is behind the outputs is not read as numbers."""
    rng, kernel = np.random.default_rng(outputs), codes.add_columns_kernel()
    counts = rng.integers(0, 9, rows) * (np.arange(rows) != 1)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    places = rng.integers(0, 12, starts[-1])
    cuts = rng.normal(0, 3, starts[-1]).astype(np.float32)
    columns = np.full((12, tile_count(outputs) * TILE), np.nan, np.float32)
    columns[:, :outputs] = rng.normal(size=(12, outputs))
    wanted = codes.add_columns(columns[:, :outputs].astype(np.float64), starts, places, cuts)
    sizes = codes.add_columns(np.abs(columns[:, :outputs]), starts, places, np.abs(cuts))
    buffers = {
        "columns": columns,
        "starts": starts,
        "places": places,
        "cuts": cuts,
        "out": np.full((rows, columns.shape[1]), np.nan, np.float32),
    }
    slots: dict[str, int | str] = {name: name for name in buffers}
    slots |= {
        "rows": rows,
        "tiles": tile_count(outputs),
        "column_stride": columns.strides[0],
        "out_stride": columns.strides[0],
    }
    case = Case(
        f"add columns {rows} x {outputs}",
        buffers,
        [call(kernel, slots)],
        threads,
        near={"out": wanted},
        bounds={"out": 8 * 2.0**-23 * sizes},
    )
    return case, kernel


def _apart(x: np.ndarray) -> np.ndarray:
    """Rows with NaN between them, which nothing may read or write."""
    return np.pad(x, ((0, 0), (0, 3)), constant_values=np.float32(np.nan))
