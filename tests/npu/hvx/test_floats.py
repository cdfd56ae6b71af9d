"""Float vectors as versions from 68 on make them: functions, and the layer's kernels, by value.

No emulator has these vectors. So the same code, 32 lanes wide and with the same operations, is
compiled for the workstation, which rounds as IEEE has it: what is not run is HVX's instructions
themselves, and of those which there are is counted in their assembly.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cpu.codegen.isa import Isa
from cpu.codegen.language import F32, I8, Code, Value
from cpu.kernels import attention, elementwise, rows
from cpu.kernels.kernel import Arguments, Kernel, Thread
from edge.graph import GateFunction
from edge.kvcache import CacheFormat
from edge.target import HVX_VERSIONS
from npu.hvx import floats
from npu.hvx.isa import VECTOR_BYTES, table
from tests.cpu.attention_cases import SHAPES, attention_case
from tests.cpu.calls import Case, check, run
from tests.cpu.harness import call, isa_of, loaded, runnable
from tests.cpu.row_cases import elementwise_cases, int8_case, norm_case, rope_case

Floats = NDArray[np.float32]

LANES = floats.VECTOR_LANES
VECTOR = F32.of(LANES)
WITH_FLOATS = [version for version in HVX_VERSIONS if table(version).floats is not None]


@cache
def wide() -> Isa:
    """The workstation's instruction set with Hexagon's float vectors."""
    operations = floats.vector_floats(floats.FIRST_WITH_CONVERSIONS - 1)
    return replace(isa_of(runnable()[0]), vector_bytes=VECTOR_BYTES, floats=operations)


def applied(function: Callable[[Value, Value], Value], a: Floats, b: Floats) -> Floats:
    """A function of two vectors, for all of two arrays."""

    def body(code: Code, arguments: Arguments, thread: Thread) -> None:
        with code.loop(0, arguments.integer("count"), LANES) as i:
            x, y = (code.load(VECTOR, arguments.pointer(name), i * 4) for name in ("a", "b"))
            code.store(function(x, y), arguments.pointer("out"), i * 4)

    kernel = Kernel("applied", ("a", "b", "out", "count"), body)
    buffers = {"a": a, "b": b, "out": np.zeros_like(a)}
    slots: dict[str, int | str] = {name: name for name in buffers}
    case = Case("applied", buffers, [call(kernel, slots | {"count": a.size})])
    return run(loaded(wide(), [kernel]), case)["out"]


def test_a_quotient_is_within_two_units_in_the_last_place() -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.choice([-1, 1], 4096) * np.exp2(rng.uniform(-60, 60, 4096)) for _ in range(2))
    a, b = a.astype(np.float32), b.astype(np.float32)
    made = applied(lambda x, y: x / y, a, b)
    wanted = a.astype(np.float64) / b
    assert (np.abs(made - wanted) <= 2.0**-22 * np.abs(wanted)).all()


def test_the_inverse_of_what_is_next_to_infinite_is_nothing() -> None:
    b = np.exp2(np.linspace(120, 127.9, LANES)).astype(np.float32)
    made = applied(lambda x, y: x / y, np.ones_like(b), b)
    large = b >= 2.0**125
    assert (np.abs(made * b - 1) <= 2e-7)[~large].all()
    assert ((made >= 0) & (made <= 2.0**-124))[large].all()


def test_rounding_is_to_nearest_with_ties_to_even() -> None:
    rng = np.random.default_rng(2)
    ties = np.arange(-100, 100) / 2
    near = np.concatenate([np.nextafter(ties, -200), np.nextafter(ties, 200)])
    odd = [0.49999997, 8388607.5, -8388606.5, 2.0**30, -(2.0**24) - 2, 0.0]
    values = np.concatenate([ties, near, odd, rng.normal(0, 1000, 298)]).astype(np.float32)
    values = values[: values.size // LANES * LANES]
    made = applied(lambda x, _: x.round(), values, values)
    np.testing.assert_array_equal(made, np.rint(values))


def test_lanes_are_brought_to_one() -> None:
    a = np.random.default_rng(3).normal(size=LANES).astype(np.float32)
    total = applied(lambda x, _: x.total().broadcast(LANES), a, a)
    np.testing.assert_allclose(total, np.full(LANES, a.sum(dtype=np.float64)), rtol=0, atol=1e-5)
    largest = applied(lambda x, _: x.largest().broadcast(LANES), a, a)
    np.testing.assert_array_equal(largest, np.full(LANES, a.max()))


def test_bytes_are_loaded_as_floats() -> None:
    def body(code: Code, a: Arguments, thread: Thread) -> None:
        code.store(code.load_floats(I8.of(LANES), a.pointer("x"), 7), a.pointer("out"))

    x = np.random.default_rng(4).integers(-128, 128, 7 + VECTOR_BYTES).astype(np.int8)
    kernel = Kernel("bytes", ("x", "out"), body)
    buffers: dict[str, NDArray[Any]] = {"x": x, "out": np.zeros(LANES, np.float32)}
    case = Case("bytes", buffers, [call(kernel, {"x": "x", "out": "out"})])
    made = run(loaded(wide(), [kernel]), case)["out"]
    np.testing.assert_array_equal(made, x[7 : 7 + LANES])


def looser(case: Case) -> Case:
    """Twice the bounds: a quotient is rounded up to four times as much as IEEE's."""
    return replace(case, bounds={name: 2 * bound for name, bound in case.bounds.items()})


def test_kernels_of_rows_are_their_twins() -> None:
    norms = [norm_case(LANES, *shape) for shape in ((1, 1, 33), (2, 4, 20), (3, 1, 300))]
    turns = [rope_case(*shape) for shape in ((3, 2, 20, 10), (2, 3, 64, 32), (2, 2, 140, 66))]
    elements = elementwise_cases(2)
    kernels = [rows.norm_kernel(), rows.rope_kernel()]
    functions = loaded(wide(), [*kernels, *(kernel for _, made in elements for kernel in made)])
    for case in (*norms, *turns, *(case for case, _ in elements)):
        check(looser(case), run(functions, case))


def test_rounding_of_rows_is_the_twin_but_for_the_quotient() -> None:
    functions = loaded(wide(), [rows.int8_kernel()])
    for shape in ((1, 1), (3, 33), (4, 172)):
        case = int8_case(LANES, *shape)
        near = np.abs(case.near["out"]) * 2.0**-22
        bounds = {"out": np.where(np.isfinite(case.bounds["out"]), near, np.inf)}
        check(replace(case, bounds=bounds), run(functions, case))


@pytest.mark.parametrize("form", ["f16", "int8"])
def test_attention_is_its_twin(form: CacheFormat) -> None:
    functions = loaded(wide(), [attention.attention_kernel(form)])
    for shape in SHAPES:
        case, _ = attention_case(form, shape)
        check(looser(case), run(functions, case))


def vector_kernels() -> list[Kernel]:
    """The layer's float kernels that work on whole vectors."""
    functions: tuple[GateFunction, ...] = ("silu", "gelu_tanh", "gelu", "relu2")
    gates = [elementwise.gate_kernel(function) for function in functions]
    return [rows.norm_kernel(), rows.rope_kernel(), rows.int8_kernel(), *gates]


# Scalar float instructions: those of the ends of rows, one root, and what is of a whole row.
SCALARS = {"norm": 30, "rope": 8, "int8": 20}


@pytest.mark.parametrize("version", WITH_FLOATS)
def test_no_vector_is_taken_apart(version: int) -> None:
    """Lanes are neither put in nor taken out one by one, nor is a function called for each."""
    from cpu.codegen.emit import Module, assembly

    for kernel in vector_kernels():
        module = Module(table(version))
        kernel.emit(module)
        text = assembly(module)
        assert "vinsert" not in text, kernel.name
        assert "rintf" not in text, kernel.name
        assert len(re.findall(r"= sf\w+\(", text)) <= SCALARS.get(kernel.name, 0), kernel.name
        kind = r"\.sf = v(?:add|mpy)\(" if version >= 79 else r"\.qf32 = v(?:add|mpy)\("
        assert re.search(kind, text), kernel.name


def test_the_emulators_version_has_one_lane() -> None:
    assert table(67).floats is None
    assert table(67).lanes == 1
