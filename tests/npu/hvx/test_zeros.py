"""What zeros add: exact but for the bits of sums that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from edge.formats import Format
from edge.planes import pack, zeros_of
from npu.hvx import zeros
from npu.hvx.weights import row_scales
from tests.cpu.harness import random_weights

FORMATS = ["w1g32a", "w1g64a", "w2g32a", "w2g64a", "w3g128a", "w4g64a", "w4gca", "w8g32a"]


def sums_of(form: Format, width: int, largest: int) -> np.ndarray:
    blocks = -(-width // 256)
    rng = np.random.default_rng(3)
    return rng.integers(-largest, largest + 1, blocks * zeros.groups_of(form)).astype(np.int32)


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("largest", [4000, 500_000])
def test_they_are_offsets_times_scales_times_sums(text: str, largest: int) -> None:
    form, rows, width = Format.parse(text), 100, 600
    weights = random_weights(form, rows, width, np.random.default_rng(2))
    scales = row_scales(form, pack(form, weights), rows)
    assert scales.offsets is not None
    assert weights.zeros is not None
    sums = sums_of(form, width, largest)
    made = zeros.added(form, scales.offsets, sums, rows)
    groups = weights.zeros.shape[1]
    offsets = zeros_of(form, weights.zeros).astype(float)
    offsets = -offsets if form.bits == 8 else 2**form.bits - 1 - 2 * offsets
    shares = weights.scales / np.abs(weights.scales).max(axis=1, keepdims=True)
    terms = offsets * (shares * 32767 / 32768 if form.granularity == "group" else 1)
    if form.granularity != "group":
        terms = np.repeat(terms, len(sums), axis=1)
    exact = np.zeros((rows, len(sums)))
    exact[:, : terms.shape[1]] = (terms * sums[: terms.shape[1]])[:, : len(sums)]
    exact = exact.reshape(rows, -1, zeros.groups_of(form)).sum(axis=2)
    exact /= 64 if form.bits == 8 else 1
    assert groups == form.group_count(width)
    bound = np.abs(offsets).max() * largest * zeros.groups_of(form) / (64 if form.bits == 8 else 1)
    assert np.abs(made - exact).max() <= bound * 2.0**-11 + 1


@pytest.mark.parametrize("text", FORMATS)
def test_no_total_leaves_32_bits(text: str) -> None:
    form = Format.parse(text)
    largest = (1 << zeros.kept_bits(form)) * zeros.groups_of(form) * 32767
    # an offset is less than this share of 1; at 1 bit zeros are up to half a code outside the codes
    most = 1 if form.bits == 1 else (form.levels - 1) / form.levels
    assert largest * most < 2**31
