"""Rows in bfloat16 as the matrix unit takes them: converted, and left so by norms and gates."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from cpu.codegen.isa import Isa
from cpu.kernels import elementwise, rows, tile_rows
from cpu.kernels.kernel import Kernel, float_slot
from edge.graph import GateFunction
from edge.planes import TILE
from tests.cpu.calls import Case, check, run
from tests.cpu.harness import call, loaded
from tests.cpu.test_gemm import AMX, UNITS, rounded, unit

# Rows, their width, threads: ends of tiles of 16 rows, of 32 inputs, of 64 columns.
SHAPES = ((1, 1, 1), (3, 33, 2), (16, 64, 1), (17, 96, 3), (33, 172, 2), (5, 400, 3))

Floats = np.ndarray
Slots = dict[str, int | str]


@pytest.fixture(params=UNITS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Isa:
    if request.param != AMX:
        monkeypatch.setattr(tile_rows, "_rounded", rounded)
    return unit(request.param)


def spread(x: Floats, rest: float = np.nan) -> Floats:
    """Rows with what may be read behind them: whole tiles of columns."""
    return np.pad(x, ((0, 0), (0, -x.shape[1] % TILE)), constant_values=np.float32(rest))


def tiled_case(
    kernel: Kernel, inputs: dict[str, Floats], extra: Slots, wanted: Floats, threads: int
) -> Case:
    """Rows of `inputs` to tiles; of rows that are not there, tiles stay as they were."""
    count, width = wanted.shape
    expected = tile_rows.in_tiles(wanted)
    expected.reshape(-1, *expected.shape[1:])[-1, :, count % 16 or 16 :] = 0xA5A5
    slots: Slots = {"out": "out", "rows": count, "width": width} | extra
    slots |= {name: name for name in inputs}
    out = np.full(expected.shape, 0xA5A5, np.uint16)
    return Case(
        f"{kernel.name} {count}x{width} by {threads}",
        inputs | {"out": out},
        [call(kernel, slots)],
        threads=threads,
        expected={"out": expected},
    )


def of_rows(x: Floats) -> Slots:
    return {"x_stride": 4 * x.shape[1], "out_stride": 0, "private": 0, "x_private": 0}


def test_rows_are_as_the_twins(isa: Isa) -> None:
    kernel = tile_rows.bfloat16_kernel()
    functions = loaded(isa, [kernel])
    for count, width, threads in SHAPES:
        values = np.random.default_rng(width).normal(size=(count, width)).astype(np.float32)
        x = spread(values)
        case = tiled_case(kernel, {"x": x}, of_rows(x), values, threads)
        check(case, run(functions, case))


def test_a_norm_is_the_two_kernels_to_the_bit(isa: Isa) -> None:
    plain, kernel = rows.norm_kernel(), tile_rows.norm_bfloat16_kernel()
    functions = loaded(isa, [plain, kernel])
    for count, width, threads in SHAPES:
        rng = np.random.default_rng(width)
        x = spread(rng.normal(size=(count, width)).astype(np.float32))
        weight = spread(rng.normal(size=(1, width)).astype(np.float32), 0.0)
        extra = of_rows(x) | {"eps": float_slot(1e-5)}
        slots = extra | {"rows": count, "width": width, "size": width, "out_stride": 4 * x.shape[1]}
        slots |= {name: name for name in ("x", "weight", "out")}
        inputs = {"x": x, "weight": weight}
        normed = Case("norm", inputs | {"out": np.zeros_like(x)}, [call(plain, slots)])
        wanted = run(functions, normed)["out"][:, :width]
        twin = rows.norm(x[:, :width], weight[0, :width], 1e-5)
        np.testing.assert_allclose(wanted, twin, rtol=1e-5)
        case = tiled_case(kernel, inputs, extra, wanted, threads)
        check(case, run(functions, case))


@pytest.mark.parametrize("function", get_args(GateFunction))
def test_a_gate_is_the_two_kernels_to_the_bit(isa: Isa, function: GateFunction) -> None:
    plain, kernel = (
        make(function) for make in (elementwise.gate_kernel, tile_rows.gate_bfloat16_kernel)
    )
    functions = loaded(isa, [plain, kernel])
    for count, width, threads in SHAPES:
        rng = np.random.default_rng(width)
        a, b = (spread(rng.normal(size=(count, width)).astype(np.float32)) for _ in range(2))
        stride = 4 * a.shape[1]
        extra: Slots = {"tiles": -(-width // TILE), "a_stride": stride, "b_stride": stride}
        slots = extra | {"rows": count, "out_stride": stride, "number": 0}
        slots |= {"a_private": 0, "b_private": 0} | {name: name for name in ("a", "b", "out")}
        inputs = {"a": a, "b": b}
        gated = Case("gate", inputs | {"out": np.zeros_like(a)}, [call(plain, slots)])
        wanted = run(functions, gated)["out"][:, :width]
        twin = elementwise.gate(function, a[:, :width], b[:, :width])
        np.testing.assert_allclose(wanted, twin, rtol=1e-5, atol=1e-6)
        case = tiled_case(kernel, inputs, extra, wanted, threads)
        check(case, run(functions, case))
