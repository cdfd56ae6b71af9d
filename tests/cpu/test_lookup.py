"""Tables of partial sums: what they hold, and that looking up in them multiplies.

Kernels of ARM64 run in `arm64`.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu.codegen.image import Image
from cpu.kernels import lookup
from cpu.kernels.activations import PEAK, RowLayout, quantize_rows
from edge.formats import Format
from edge.planes import STEP, pack_planes
from tests.cpu.calls import Case, check, run
from tests.cpu.harness import (
    FORMATS,
    call,
    isa_of,
    kernels_of,
    largest_sums,
    linear_case,
    loaded,
    quantized_rows,
    random_weights,
    runnable,
    whole_numbers,
)

# Of targets that look up, the formats that they do it for.
LOOKED_UP = [
    (target, form)
    for target in runnable()
    for form in FORMATS
    if Format.parse(form).bits in isa_of(target).lookup_bits
]
every_lookup = pytest.mark.parametrize(("target", "form"), LOOKED_UP)


@cache
def functions(target: str, form: str) -> Image:
    """What quantizes, makes tables and looks up."""
    parsed = Format.parse(form)
    made = [kernels_of(parsed)[0], lookup.tables_kernel(), lookup.lookup_kernel(parsed)]
    return loaded(isa_of(target), made)


@every_lookup
@settings(max_examples=10)
@given(
    rows=st.integers(1, 150),
    width=st.integers(1, 300),
    batch=st.integers(1, 3),
    threads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_any_shape_is_as_the_twin_of_dot_products(
    target: str, form: str, rows: int, width: int, batch: int, threads: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weights = random_weights(Format.parse(form), rows, width, rng)
    x = rng.normal(size=(batch, width)).astype(np.float32)
    case = linear_case(Format.parse(form), weights, x, threads=threads, tables=True)
    check(case, run(functions(target, form), case, walled=("codes", "scales", "zeros", "bias")))


@every_lookup
def test_integers_are_exact(target: str, form: str) -> None:
    case = whole_numbers(Format.parse(form), np.random.default_rng(5), tables=True)
    check(case, run(functions(target, form), case))


@every_lookup
@pytest.mark.parametrize("most", [False, True], ids=["least", "most"])
def test_the_largest_sums_do_not_overflow(target: str, form: str, most: bool) -> None:
    case = largest_sums(Format.parse(form), most=most, tables=True)
    check(case, run(functions(target, form), case))


@given(width=st.integers(1, 100), bits=st.integers(1, 4), seed=st.integers(0, 99))
def test_digits_that_are_looked_up_add_up_to_products(width: int, bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.choice([-PEAK, -1, 0, 1, 77, PEAK], (2, width)).astype(np.int16)
    codes = rng.integers(0, 1 << bits, (64, width), np.uint8)
    (planes,) = pack_planes(codes, bits)  # [steps, bits, 64]
    nibbles = np.stack([planes & 15, planes >> 4], axis=1)  # [steps, 2, bits, 64]
    steps = -(-width // STEP)
    total = np.zeros((2, 64), np.int64)
    for digit in range(lookup.DIGITS):
        of_digit = lookup.tables(values)[:, :, :, digit]  # [rows, steps, 2, 16]
        signed = of_digit.view(np.int8) if digit == lookup.DIGITS - 1 else of_digit
        for bit in range(bits):
            where = np.broadcast_to(nibbles[:, :, bit], (2, steps, 2, 64))
            found = np.take_along_axis(signed.astype(np.int64), where, axis=3)
            total += found.sum(axis=(1, 2)) << (bit + lookup.DIGIT_BITS * digit)
    np.testing.assert_array_equal(total, values.astype(np.int64) @ codes.T.astype(np.int64))


@pytest.mark.parametrize("target", runnable())
@settings(max_examples=10)
@given(width=st.integers(1, 200), rows=st.integers(1, 3), threads=st.integers(1, 4))
def test_the_kernel_makes_what_its_twin_does(
    target: str, width: int, rows: int, threads: int
) -> None:
    x = np.random.default_rng(width).normal(size=(rows, width)).astype(np.float32)
    layout, size = RowLayout(width, 64), lookup.tables_bytes(width)
    values, _ = quantize_rows(x, 64)
    copies = np.stack([quantized_rows(x, 64)] * threads)
    slots: dict[str, int | str] = {"x": "x", "out": "out", "rows": rows, "width": width}
    slots |= {"padded": layout.padded, "x_stride": layout.byte_count, "out_stride": size}
    slots["x_private"] = copies[0].size
    kernel = lookup.tables_kernel()
    case = Case(
        f"tables {rows}x{width} threads {threads}",
        {"x": copies, "out": np.zeros((rows, size), np.uint8)},
        [call(kernel, slots)],
        threads=threads,
        expected={"out": lookup.tables(values).reshape(rows, size)},
    )
    check(case, run(loaded(isa_of(target), [kernel]), case))
