"""Lookup tables of activations: the twin against its definition, the kernels against the twin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npu.hvx import tables
from tests.npu.hvx.harness import Device, prepare


def test_entries_are_signed_sums_with_mirrored_halves() -> None:
    quads = np.random.default_rng(1).integers(-8000, 8000, (5, 4)).astype(np.int16)
    made = tables.signed_sums(quads)
    for index in range(16):
        signs = [1 if index >> place & 1 else -1 for place in range(4)]
        np.testing.assert_array_equal(made[:, index], quads @ np.array(signs, np.int16))
    np.testing.assert_array_equal(made, -made[:, ::-1])


def test_a_vector_has_four_tables_as_vlut16_reads_them() -> None:
    x = np.random.default_rng(2).normal(size=16).astype(np.float32)
    made = tables.activations(x, 32, tables.RATIO_ONE)
    words = made.tables[0, 0].reshape(32, 2)
    plain = tables.signed_sums(made.values[:16].reshape(4, 4))
    for which in range(4):
        first = 16 * (which % 2)
        np.testing.assert_array_equal(words[first : first + 16, which // 2], plain[which])


@pytest.mark.parametrize("width", [1, 4, 256, 300, 1000])
def test_no_entry_leaves_16_bits_and_values_keep_their_size(width: int) -> None:
    x = np.random.default_rng(3).standard_cauchy(width).astype(np.float32)
    made = tables.activations(x, 32, tables.RATIO_ONE)
    wide = made.values.astype(np.int64).reshape(-1, 4)
    assert np.abs(wide).sum(axis=1).max() <= 32767
    scales = np.repeat(made.peaks, 256)[:width] / tables.PEAK
    cut = np.abs(x).max() * 2.0**-23
    assert (np.abs(made.values[:width] * scales - x) <= 0.51 * scales + cut).all()


@settings(max_examples=15)
@given(
    width=st.integers(1, 1100),
    group=st.sampled_from([32, 64, 128, 256]),
    spread=st.floats(0, 30),
    seed=st.integers(0, 99),
)
def test_kernels_are_their_twin(
    device: Device, width: int, group: int, spread: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=width) * 10 ** rng.uniform(-spread, 1, width)).astype(np.float32)
    check(device, x, group)


def test_rows_of_nothing(device: Device) -> None:
    check(device, np.zeros(300, np.float32), 64)
    check(device, np.array([0.0] * 256 + [1.0]).astype(np.float32), 128)


@pytest.mark.parametrize("size", [1e-42, 3e-38, 1e-30, 2e-29, 1e37])
def test_rows_of_the_least_and_the_largest_numbers(device: Device, size: float) -> None:
    x = np.random.default_rng(5).uniform(-size, size, 700).astype(np.float32)
    check(device, x, 32)
    x[256:512] = 0
    check(device, x, 256)


def check(device: Device, x: np.ndarray, group: int) -> None:
    held = prepare(device, x, group, 2)
    twin = tables.activations(x, group, held["one"])
    read = device.emulator.read
    blocks = len(twin.ratios)
    for name in ("values", "peaks"):
        want = getattr(twin, name)
        np.testing.assert_array_equal(read(held[name], want.dtype, want.shape), want, name)
    np.testing.assert_array_equal(read(held["tables"], np.int16, (blocks, 16, 64)), twin.tables)
    sums = read(held["sums"], np.int32, (len(twin.sums), 32))
    np.testing.assert_array_equal(sums, np.repeat(twin.sums[:, None], 32, axis=1))
    split = read(held["bytes"], np.int8, (len(twin.values) // 4, 2, 4)).astype(np.int32)
    joined = 256 * split[:, 0] + split[:, 1]
    np.testing.assert_array_equal(joined.reshape(-1), twin.values)
