from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from converter.quantize.rtn import fit_tensor_scale, quantize_rows
from edge.errors import BadWeights
from edge.formats import Format
from edge.planes import dequantize

INTEGER = [
    "w1g32",
    "w1g64a",
    "w1gc",
    "w1gca",
    "w2g32",
    "w2g64a",
    "w3g64",
    "w3gca",
    "w4g32",
    "w4g64a",
    "w4gc",
    "w8g128",
    "w8gca",
]
TERNARY = ["ternary", "ternaryg64", "ternarygc"]


def restored(name: str, weights: NDArray[np.float32]) -> NDArray[np.float32]:
    form = Format.parse(name)
    scale = fit_tensor_scale(lambda: [weights]) if form.granularity == "tensor" else None
    return dequantize(form, quantize_rows(form, weights, scale))


def normal(shape: tuple[int, int], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", INTEGER + TERNARY)
@given(st.integers(1, 20), st.integers(1, 200), st.integers(0, 2**32 - 1), st.floats(-3, 3))
@settings(max_examples=25)
def test_the_error_is_within_the_planned_bound(
    name: str, rows: int, width: int, seed: int, log_size: float
) -> None:
    weights = normal((rows, width), seed) * np.float32(10**log_size)
    form = Format.parse(name)
    size, groups = form.group_size(width), form.group_count(width)
    padded = np.pad(weights, ((0, 0), (0, groups * size - width)))
    peaks = np.abs(padded).reshape(rows, groups, size).max(axis=2)
    if form.granularity == "tensor":
        peaks[:] = peaks.max()
    # float16 scales are off by 2^-11 at most, and never smaller than their least step
    bound = np.repeat(peaks, size, axis=1)[:, :width] * (form.error_bound + 2.0**-10) + 1e-6
    assert (np.abs(weights - restored(name, weights)) <= bound).all()


@pytest.mark.parametrize("name", INTEGER + TERNARY)
def test_each_weight_gets_its_nearest_code(name: str) -> None:
    form = Format.parse(name)
    weights = normal((3, 70))
    scale = fit_tensor_scale(lambda: [weights]) if form.granularity == "tensor" else None
    quantized = quantize_rows(form, weights, scale)
    errors = []
    for code in range(form.levels):
        quantized.codes[:], kept = code, quantized.codes.copy()
        errors.append(np.abs(dequantize(form, quantized) - weights))
        quantized.codes[:] = kept
    best = np.min(errors, axis=0)
    found = np.abs(dequantize(form, quantized) - weights)
    assert found == pytest.approx(best, abs=1e-6)


# Relative RMS error of normal weights, measured; fails when a quantizer loses its gain.
EXPECTED = {
    "w8gc": 0.0070,
    "w4g32": 0.087,
    "w4g64": 0.095,
    "w4g64a": 0.092,
    "w4g128": 0.104,
    "w3g64": 0.192,
    "w2g64": 0.395,
    "w2g64a": 0.458,
    "w1gc": 0.602,
    "w1g64": 0.598,
    "w1g64a": 0.585,
    "w1g32": 0.594,
    "w1g32a": 0.568,
    "ternary": 0.448,
    "ternaryg64": 0.434,
}


@pytest.mark.parametrize(("name", "expected"), EXPECTED.items())
def test_error_on_normal_weights(name: str, expected: float) -> None:
    weights = normal((512, 256))
    error = np.sqrt(np.mean((restored(name, weights) - weights) ** 2) / np.mean(weights**2))
    assert error < 1.02 * expected


@pytest.mark.parametrize("name", TERNARY)
def test_ternary_weights_come_back_exactly(name: str) -> None:
    codes = np.random.default_rng(0).integers(-1, 2, (64, 192)).astype(np.float32)
    scale = np.float32(0.03125) if name == "ternaryg64" else np.float32(0.0123)
    assert restored(name, codes * scale) == pytest.approx(codes * scale, rel=1e-6)


@pytest.mark.parametrize("name", INTEGER + TERNARY)
def test_zeros_stay_zeros(name: str) -> None:
    assert not restored(name, np.zeros((2, 100), np.float32)).any()


def test_a_constant_sign_uses_the_asymmetric_range() -> None:
    weights = np.abs(normal((64, 64)))
    symmetric, asymmetric = restored("w2g64", weights), restored("w2g64a", weights)
    assert np.abs(asymmetric - weights).mean() < 0.7 * np.abs(symmetric - weights).mean()


def test_scales_over_float16_are_refused() -> None:
    weights = np.full((1, 64), 1e6, np.float32)
    with pytest.raises(BadWeights, match=r"1e\+06"):
        quantize_rows(Format.parse("w4g64"), weights)
    assert restored("w4gc", weights) == pytest.approx(weights)
