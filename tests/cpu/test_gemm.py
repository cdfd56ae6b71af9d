"""Products on a matrix unit against their twin: AMX code, and a unit that is made of vector code.

AMX code runs wherever there is AVX-512, emulated where there is no AMX (see `tests.cpu.amx`).
"""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest
from numpy.typing import NDArray

from cpu.codegen.image import Image
from cpu.codegen.isa import Isa
from cpu.codegen.language import I16, I32, Value
from cpu.kernels import gemm, tile_rows
from edge.formats import Format
from edge.planes import TILE, dequantize, pack, tile_count
from edge.target import Target
from tests.cpu.calls import Case, check, run
from tests.cpu.harness import FORMATS, call, isa_of, loaded, random_weights, runnable
from tests.cpu.tiles import with_tiles

AMX = "cpu:x86_64,amx"
UNITS = ["vector code", pytest.param(AMX, marks=pytest.mark.amx)]

SHAPES = ((1, 1, 1, 1), (64, 36, 17, 1), (150, 300, 33, 2), (530, 68, 32, 1), (64, 530, 64, 3))


def unit(name: str) -> Isa:
    if name == AMX:
        return isa_of(AMX)
    return with_tiles(isa_of(next(t for t in runnable() if "amx" not in Target.parse(t).features)))


def gemm_case(
    form: Format, rows: int, width: int, count: int, threads: int, *, bias: bool = True
) -> Case:
    """x [count, width] to bfloat16, then by weights [rows, width]; 32 rows at a time are computed.

    What is added to them is a bias, or other rows. Of x, whole tiles are read; rows that are not
    there may hold anything, as their sums do.
    """
    rng = np.random.default_rng(rows + width)
    weights, tiles = random_weights(form, rows, width, rng), tile_count(rows)
    x = rng.normal(size=(count, width)).astype(np.float32)
    parts, padded = pack(form, weights), -(-count // 32) * 32
    stride = -(-width // 32) * 32
    start = np.linspace(-1, 1, tiles * TILE, dtype=np.float32)
    if not bias:
        start = start * rng.normal(size=(padded, 1)).astype(np.float32)
    plain = dequantize(form, weights)
    # float32 sums, and the one weight whose rounding turns on the last bit of a product
    bounds = 2.0**-20 * (np.abs(x) @ np.abs(plain).T + 1)
    bounds += 2.0**-8 * np.abs(x).max(axis=1)[:, None] * np.abs(plain).max(axis=1)
    buffers = {
        "x": np.pad(x, ((0, 0), (0, stride - width)), constant_values=np.float32(np.nan)),
        "bf16": np.zeros(tile_rows.rows_bytes(padded, width), np.uint8),
        "codes": parts["codes" if form.bits == 8 else "planes"],
        "scales": parts["scales"],
        "zeros": parts.get("zeros", np.zeros(1, np.uint8)),
        "start": start,
        "panels": np.full((threads, gemm.panels_bytes(padded)), 0xFF, np.uint8),
        "out": np.full((padded, tiles * TILE), np.nan, np.float32),
    }
    # what was in panels is finite, in sums anything
    buffers["panels"].reshape(-1)[: threads * gemm.panels_bytes(0)] = 0
    convert, multiply = tile_rows.bfloat16_kernel(), gemm.gemm_kernel(form)
    first: dict[str, int | str] = {
        "x": "x",
        "out": "bf16",
        "rows": count,
        "width": width,
        "x_stride": 4 * stride,
        "out_stride": 0,
        "private": 0,
        "x_private": 0,
    }
    second: dict[str, int | str] = {
        "x": "bf16",
        "out": "out",
        "rows": count,
        "width": width,
        "tiles": tiles,
        "start_stride": 0 if bias else 4 * tiles * TILE,
        "out_stride": 4 * tiles * TILE,
    }
    second |= {name: name for name in ("codes", "scales", "zeros", "start", "panels")}
    return Case(
        f"gemm {form} {rows}x{width} count {count} threads {threads}",
        buffers,
        [call(convert, first), call(multiply, second)],
        threads=threads,
        near={
            "out": gemm.gemm(half_up(plain), x)
            + np.atleast_2d(start)[:count, :rows].astype(np.float64)
        },
        bounds={"out": bounds},
        scratch=["bf16", "panels"],
    )


def half_up(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest bfloat16, of two as near the one further from zero: as panels hold weights."""
    return ((values.view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32)


def rounded(values: Value) -> Value:
    """What `tile_rows` asks of an instruction of matrix units: to the nearest, to even."""
    bits = values.cast(I32.of(values.type.lanes))
    return ((bits + ((bits >> 16) & 1) + 0x7FFF) >> 16).to(I16)


def hold(functions: Image, form: Format, walled: tuple[str, ...]) -> None:
    for number, shape in enumerate(SHAPES):
        case = gemm_case(form, *shape, bias=number % 2 == 0)
        check(case, run(functions, case, walled=walled))


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_as_the_twin(name: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once with walls behind what is read, in another process, which a read behind them ends."""
    parsed = Format.parse(form)
    if name != AMX:
        monkeypatch.setattr(tile_rows, "_rounded", rounded)
    functions = loaded(unit(name), [tile_rows.bfloat16_kernel(), gemm.gemm_kernel(parsed)])
    hold(functions, parsed, ())
    child = multiprocessing.get_context("fork").Process(
        target=hold, args=(functions, parsed, ("codes", "scales", "zeros", "start"))
    )
    child.start()
    child.join()
    assert child.exitcode == 0, f"ended with {child.exitcode} (-11: read behind the weights)"
