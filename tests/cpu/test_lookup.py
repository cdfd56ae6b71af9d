"""Tables of partial sums: what they hold, and that looking up in them multiplies.

Kernels that look up are for ARM64, and run in `arm64`.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu.kernels import lookup
from cpu.kernels.activations import PEAK, RowLayout, quantize_rows
from edge.planes import STEP, pack_planes
from tests.cpu.calls import Case, check, run
from tests.cpu.harness import call, isa_of, loaded, quantized_rows, runnable


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
