from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge import planes
from edge.formats import Format
from edge.planes import Quantized, StoredTensor

QUANTIZED = [
    "w1g32",
    "w1g64a",
    "w1gc",
    "w2g32",
    "w2g64a",
    "w3g64",
    "w3gca",
    "w4g32",
    "w4g64a",
    "w4g128",
    "w4gc",
    "w8g32",
    "w8g64a",
    "w8gc",
    "ternary",
    "ternaryg64",
    "ternarygc",
]

rows = st.integers(1, 150)
widths = st.integers(1, 200)
seeds = st.integers(0, 2**32 - 1)


def random_codes(seed: int, shape: tuple[int, int], levels: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, levels, shape, np.uint8)


def random_quantized(form: Format, seed: int, shape: tuple[int, int]) -> Quantized:
    generator = np.random.default_rng(seed)
    count = 1 if form.granularity == "tensor" else shape[0]
    groups = 1 if form.granularity == "tensor" else form.group_count(shape[1])
    dtype = np.float16 if form.granularity == "group" else np.float32
    scales = generator.normal(size=(count, groups)).astype(dtype)
    most = form.levels * form.zero_parts
    zeros = random_codes(seed + 1, scales.shape, most) if form.asymmetric else None
    return Quantized(random_codes(seed, shape, form.levels), scales, zeros)


def stored(form: Format, quantized: Quantized) -> StoredTensor:
    return StoredTensor("x", form, quantized.codes.shape, planes.pack(form, quantized))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@given(rows, widths, seeds)
def test_planes_round_trip(bits: int, count: int, width: int, seed: int) -> None:
    codes = random_codes(seed, (count, width), 1 << bits)
    packed = planes.pack_planes(codes, bits)
    assert packed.shape == (-(-count // 64), -(-width // 8), bits, 64)
    assert np.array_equal(planes.unpack_planes(packed, count, width), codes)


@given(rows, widths, seeds)
def test_bytes_round_trip(count: int, width: int, seed: int) -> None:
    codes = random_codes(seed, (count, width), 256)
    assert np.array_equal(planes.unpack_bytes(planes.pack_bytes(codes), count, width), codes)


@pytest.mark.parametrize("name", QUANTIZED)
@given(rows, widths, seeds)
@settings(max_examples=25)
def test_every_format_round_trips(name: str, count: int, width: int, seed: int) -> None:
    form = Format.parse(name)
    quantized = random_quantized(form, seed, (count, width))
    tensor = stored(form, quantized)
    for part, expected in planes.parts_of(form, (count, width)).items():
        assert tensor.parts[part].dtype == expected.dtype
        assert tensor.parts[part].shape == expected.shape
    back = tensor.quantized()
    assert np.array_equal(back.codes, quantized.codes)
    assert np.array_equal(back.scales, quantized.scales)
    assert (back.zeros is None) == (quantized.zeros is None)
    if quantized.zeros is not None:
        assert np.array_equal(back.zeros, quantized.zeros)


@pytest.mark.parametrize("name", [*QUANTIZED, "f16", "f32"])
@given(seeds)
@settings(max_examples=10)
def test_rows_are_rows_of_the_whole(name: str, seed: int) -> None:
    form = Format.parse(name)
    if form.quantized:
        tensor = stored(form, random_quantized(form, seed, (130, 45)))
    else:
        values = np.random.default_rng(seed).normal(size=(130, 45)).astype(f"f{form.bits // 8}")
        tensor = StoredTensor("x", form, (130, 45), {"values": values})
    index = np.array([0, 129, 64, 64, 63])
    assert np.array_equal(tensor.rows(index), tensor.dequantized()[index])


def test_layout_is_the_documented_one() -> None:
    """Bit j of byte [tile, step, plane, lane] is the plane's bit of weight 8 * step + j."""
    codes = random_codes(7, (100, 40), 16)
    packed = planes.pack_planes(codes, 4)
    for row, column in [(0, 0), (63, 39), (64, 8), (99, 13), (5, 31)]:
        tile, lane = divmod(row, 64)
        step, bit = divmod(column, 8)
        of_planes = [(int(packed[tile, step, p, lane]) >> bit) & 1 for p in range(4)]
        assert sum(b << p for p, b in enumerate(of_planes)) == codes[row, column]


def test_a_nibble_is_four_neighbouring_weights_of_one_plane() -> None:
    codes = np.zeros((1, 8), np.uint8)
    codes[0, [0, 2, 5]] = 1
    packed = planes.pack_planes(codes, 1)
    assert packed[0, 0, 0, 0] & 15 == 0b0101
    assert packed[0, 0, 0, 0] >> 4 == 0b0010


def test_byte_codes_are_in_operand_order() -> None:
    codes = random_codes(3, (70, 10), 256)
    packed = planes.pack_bytes(codes)
    assert packed[1, 2, 69 - 64, 1] == codes[69, 9]


def test_dequantize_is_code_less_zero_times_scale() -> None:
    form = Format.parse("w4g32a")
    quantized = random_quantized(form, 1, (3, 40))
    assert quantized.zeros is not None
    weights = planes.dequantize(form, quantized)
    code, group = int(quantized.codes[2, 37]), 1
    expected = (code - int(quantized.zeros[2, group])) * np.float32(quantized.scales[2, group])
    assert weights[2, 37] == expected


def test_symmetric_formats_take_the_middle_code_as_zero() -> None:
    form = Format.parse("w4gc")
    quantized = Quantized(np.full((1, 5), 8, np.uint8), np.ones((1, 1), np.float32))
    assert not planes.dequantize(form, quantized).any()


def test_one_bit_is_minus_or_plus_half_a_scale() -> None:
    form = Format.parse("w1g32")
    quantized = random_quantized(form, 2, (5, 40))
    halves = np.repeat(quantized.scales.astype(np.float32) / 2, 32, axis=1)[:, :40]
    expected = np.where(quantized.codes == 1, halves, -halves)
    assert np.array_equal(planes.dequantize(form, quantized), expected)


def test_zeros_of_one_bit_are_parts_of_a_code() -> None:
    form, zeros = Format.parse("w1g32a"), np.array([-0.5, 0, 0.5, 1, 1.4921875])
    stored_ones = planes.stored_zeros(form, zeros)
    assert stored_ones.tolist() == [0, 64, 128, 192, 255]
    assert np.array_equal(planes.zeros_of(form, stored_ones), zeros)
    assert planes.stored_zeros(form, np.array([-3.0, 3.0])).tolist() == [0, 255]


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("w1g64", 1.25),
        ("w1g64a", 1.375),
        ("w4g64", 4.25),
        ("w4g64a", 4.375),
        ("w2g64", 2.25),
        ("w8gc", 8.0),
    ],
)
def test_bits_per_weight_of_whole_tiles(name: str, bits: float) -> None:
    parts = planes.parts_of(Format.parse(name), (2048, 4096))
    total = 8 * sum(part.byte_count for part in parts.values()) / (2048 * 4096)
    assert total == pytest.approx(bits, abs=0.01)


@pytest.mark.parametrize("text", [*QUANTIZED, "f16", "f32"])
def test_columns_are_those_of_the_whole(text: str) -> None:
    form, shape = Format.parse(text), (70, 172)
    if form.quantized:
        parts = planes.pack(form, random_quantized(form, 5, shape))
    else:
        values = np.random.default_rng(5).standard_normal(shape)
        parts = {"values": values.astype(f"float{form.bits}")}
    tensor = StoredTensor("t", form, shape, parts)
    index = np.array([0, 171, 5, 64, 5])
    np.testing.assert_array_equal(tensor.columns(index), tensor.dequantized()[:, index].T)
