"""Linear projections against their twin, for every format on every table that this machine runs."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu.kernels import linear
from edge.formats import Format
from tests.cpu.calls import Case, check, run
from tests.cpu.harness import (
    FORMATS,
    float_case,
    isa_of,
    largest_sums,
    linear_case,
    linear_functions,
    loaded,
    random_weights,
    runnable,
    whole_numbers,
)

TARGETS = runnable()
every_target = pytest.mark.parametrize("target", TARGETS)
every_format = pytest.mark.parametrize("form", FORMATS)

# The kernel that expands codes for every row, and the one that does so once for all.
either_kernel = pytest.mark.parametrize("many", [False, True], ids=["few", "many"])

SHAPES = {"rows": st.integers(1, 150), "width": st.integers(1, 300), "batch": st.integers(1, 17)}


@every_target
@every_format
@either_kernel
@settings(max_examples=10)
@given(threads=st.integers(1, 3), seed=st.integers(0, 99), **SHAPES)
def test_any_shape_is_as_the_twin(
    target: str, form: str, many: bool, rows: int, width: int, batch: int, threads: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weights = random_weights(Format.parse(form), rows, width, rng)
    x = rng.normal(size=(batch, width)).astype(np.float32)
    case = linear_case(Format.parse(form), weights, x, threads=threads, many=many)
    check(case, run(linear_functions(target, form), case))


@every_target
@every_format
@either_kernel
def test_integers_are_exact(target: str, form: str, many: bool) -> None:
    case = whole_numbers(Format.parse(form), np.random.default_rng(5), many=many)
    check(case, run(linear_functions(target, form), case))


@every_target
@every_format
@either_kernel
@pytest.mark.parametrize("most", [False, True], ids=["least", "most"])
def test_the_largest_sums_do_not_overflow(target: str, form: str, many: bool, most: bool) -> None:
    case = largest_sums(Format.parse(form), most=most, many=many)
    check(case, run(linear_functions(target, form), case))


@every_target
@every_format
@either_kernel
def test_a_long_row_stays_with_the_twin(target: str, form: str, many: bool) -> None:
    rng = np.random.default_rng(7)
    weights = random_weights(Format.parse(form), 64, 11008, rng)
    x = rng.normal(size=(1, 11008)).astype(np.float32)
    case = linear_case(Format.parse(form), weights, x, many=many)
    check(case, run(linear_functions(target, form), case))


@every_target
@pytest.mark.parametrize("form", ["w1g64", "w2g128", "w3g32", "w4g64a", "w8g64", "ternary"])
@either_kernel
@pytest.mark.parametrize("width", [8, 100, 350])
def test_what_pads_rows_and_panels_does_not_matter(
    target: str, form: str, many: bool, width: int
) -> None:
    """Both are memory that others used before."""
    rng = np.random.default_rng(10)
    weights = random_weights(Format.parse(form), 64, width, rng)
    x = rng.normal(size=(2, width)).astype(np.float32)
    case = linear_case(Format.parse(form), weights, x, many=many)
    for name in ("quantized", "panels"):
        case.buffers[name][:] = 0x55
    del case.expected["quantized"]
    case.scratch.append("quantized")
    check(case, run(linear_functions(target, form), case))


READ_ONLY = ("codes", "scales", "zeros", "bias")


def run_walled(target: str, form: str, case: Case) -> None:
    check(case, run(linear_functions(target, form), case, walled=READ_ONLY))


@every_target
@pytest.mark.parametrize("form", ["w2g64", "w3g64", "w4g32a", "w8g64", "w8gc", "ternary"])
@either_kernel
@pytest.mark.parametrize("width", [1, 4, 100, 123, 260])
def test_weights_at_the_end_of_a_mapping(target: str, form: str, many: bool, width: int) -> None:
    """The last tensor of a file ends where its pages end: nothing behind it may be read."""
    rng = np.random.default_rng(8)
    weights = random_weights(Format.parse(form), 64, width, rng)
    x = rng.normal(size=(1, width)).astype(np.float32)
    case = linear_case(Format.parse(form), weights, x, many=many)
    linear_functions(target, form)
    child = multiprocessing.get_context("fork").Process(
        target=run_walled, args=(target, form, case)
    )
    child.start()
    child.join()
    assert child.exitcode == 0, f"ended with {child.exitcode} (-11: read behind the weights)"


def private_copies(case: Case, threads: int) -> Case:
    """The same case with every thread quantizing rows into a copy of its own."""
    quantized = case.buffers["quantized"]
    case.buffers["quantized"] = np.stack([quantized] * threads)
    case.expected["quantized"] = np.stack([case.expected["quantized"]] * threads)
    case.threads = threads
    return case


@every_target
def test_threads_may_have_copies_of_their_own(target: str) -> None:
    form, rng = Format.parse("w4g64"), np.random.default_rng(9)
    weights = random_weights(form, 300, 100, rng)
    x = rng.normal(size=(2, 100)).astype(np.float32)
    size = linear_case(form, weights, x).buffers["quantized"].size
    case = private_copies(linear_case(form, weights, x, private=size), 3)
    check(case, run(linear_functions(target, "w4g64"), case))


@every_target
@pytest.mark.parametrize("form", ["f16", "f32"])
def test_float_weights(target: str, form: str) -> None:
    kernel = linear.float_linear_kernel(Format.parse(form))
    functions = loaded(isa_of(target), [kernel])
    for rows, width, batch, threads in ((1, 1, 1, 1), (70, 33, 3, 2), (200, 300, 2, 3)):
        case = float_case(kernel, Format.parse(form), rows, width, batch, threads)
        check(case, run(functions, case, walled=("values",)))
