"""Matrix-vector products by lookup, emulated, against their twin, bit for bit in integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.formats import Format
from edge.planes import dequantize, pack
from npu.hvx import gemv, inner, tables
from npu.hvx.weights import group_of, row_scales
from tests.cpu.harness import random_weights
from tests.npu.hvx.harness import FORMATS, Device, Product, multiply

every_format = pytest.mark.parametrize("text", FORMATS)


def check(made: Product) -> None:
    np.testing.assert_array_equal(made.integers, made.wanted)
    # three roundings of float32
    np.testing.assert_allclose(made.numbers, made.near, rtol=2**-21)


@every_format
@settings(max_examples=8)
@given(rows=st.integers(1, 150), width=st.integers(1, 600), seed=st.integers(0, 99))
def test_any_shape_is_as_the_twin(
    device: Device, text: str, rows: int, width: int, seed: int
) -> None:
    form, rng = Format.parse(text), np.random.default_rng(seed)
    weights = random_weights(form, rows, width, rng)
    x = (rng.normal(size=width) * 10 ** rng.uniform(-2, 2, width)).astype(np.float32)
    check(multiply(device, gemv.lookup_kernel(form), form, weights, x))


@every_format
@pytest.mark.parametrize("code", ["least", "most"])
def test_the_largest_sums_do_not_overflow(device: Device, text: str, code: str) -> None:
    form = Format.parse(text)
    weights = random_weights(form, 64, 14336, np.random.default_rng(6))
    weights.codes[:] = 0 if code == "least" else form.levels - 1
    if weights.zeros is not None:
        most = 255 if form.bits == 1 else form.levels - 1
        weights.zeros[:] = most if code == "least" else 0
    weights.scales[:] = 1
    x = np.full(14336, -3.5, np.float32)
    made = multiply(device, gemv.lookup_kernel(form), form, weights, x)
    check(made)
    exact = dequantize(form, weights).astype(np.float64) @ x
    np.testing.assert_allclose(made.numbers, exact, rtol=1e-3)


@every_format
def test_the_twin_is_the_product_of_dequantized_weights(text: str) -> None:
    form, rng = Format.parse(text), np.random.default_rng(7)
    weights = random_weights(form, 100, 2048, rng)
    x = rng.normal(size=2048).astype(np.float32)
    scales = row_scales(form, pack(form, weights), 100)
    one = tables.ratio_one(form.bits, 2048)
    made = gemv.products(form, weights, scales, tables.activations(x, group_of(form), one), one)
    exact = dequantize(form, weights).astype(np.float64) @ x
    # 16-bit activations and fractions: an error far below that of 8 bits, 4e-3
    assert np.linalg.norm(made - exact) < 3e-4 * np.linalg.norm(exact)


@pytest.mark.parametrize("text", [text for text in FORMATS if inner.covers(Format.parse(text))])
@pytest.mark.parametrize(("rows", "width"), [(64, 256), (300, 1024), (130, 777), (200, 896)])
def test_scheduled_loops_are_the_twin(device: Device, text: str, rows: int, width: int) -> None:
    """One tile, which takes no turn of the loop, and several, of whole blocks and of cut ones."""
    form, rng = Format.parse(text), np.random.default_rng(8)
    weights = random_weights(form, rows, width, rng)
    x = (rng.normal(size=width) * 10 ** rng.uniform(-2, 2, width)).astype(np.float32)
    check(multiply(device, gemv.lookup_kernel(form), form, weights, x))
