"""Quantized activations: bytes as the twin's, errors within half a step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cpu.kernels.activations import (
    LEAST,
    PEAK,
    RowLayout,
    norm_quantize_kernel,
    norm_quantize_rows,
    quantize_kernel,
    quantize_rows,
    quantize_sliced_kernel,
)
from cpu.kernels.kernel import float_slot
from cpu.kernels.rows import norm_kernel
from tests.cpu.calls import Case, check, run
from tests.cpu.harness import call, isa_of, loaded, quantized_rows, runnable
from tests.cpu.row_cases import (
    exact_norm_quantize_case,
    norm_quantize_case,
    quantize_sliced_case,
)

TARGETS = runnable()
BLOCKS = (32, 64, 128)

values = st.one_of(
    st.floats(-100, 100, width=32),
    st.floats(width=32, min_value=float(np.float32(1e-30)), max_value=float(np.float32(1e30))),
    st.just(0.0),
)
matrices = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=70), elements=values)


def quantize_case(x: np.ndarray, block: int, *, threads: int = 1, one_scale: bool = False) -> Case:
    rows, width = x.shape
    layout = RowLayout(width, block)
    wanted = whole_row_scale(x, block) if one_scale else quantized_rows(x, block)
    slots: dict[str, int | str] = {
        "x": "x",
        "out": "out",
        "rows": rows,
        "width": width,
        "x_stride": 4 * width,
        "out_stride": layout.byte_count,
        "padded": layout.padded,
        "scales": layout.scales,
        "sums": layout.sums,
        "one_scale": int(one_scale),
        "private": 0,
        "x_private": 0,
    }
    return Case(
        f"{rows}x{width} in {block}s by {threads}",
        {
            "x": np.pad(x.reshape(-1), (0, 16), constant_values=np.float32(np.nan)),
            "out": np.zeros((rows, layout.byte_count), np.uint8),
        },
        [call(quantize_kernel(block), slots)],
        threads=threads,
        expected={"out": wanted},
    )


def whole_row_scale(x: np.ndarray, block: int) -> np.ndarray:
    """The same with the largest magnitude of a row in each of its blocks, and then taken out."""
    rows, width = x.shape
    peak = np.abs(x).max(axis=1, keepdims=True)
    blocks = -(-width // block)
    spread = np.zeros((rows, blocks, block + 1), np.float32)
    spread[:, :, 0] = peak
    padded = np.pad(x, ((0, 0), (0, blocks * block - width)))
    spread[:, :, 1:] = padded.reshape(rows, blocks, block)
    ints, scales = quantize_rows(spread.reshape(rows, -1), block + 1)
    ints = ints.reshape(rows, blocks, block + 1)[:, :, 1:].reshape(rows, -1)[:, :width]
    return quantized_rows(x, block, (ints, scales))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("block", BLOCKS)
def test_bytes_are_the_twins(target: str, block: int) -> None:
    functions = loaded(isa_of(target), [quantize_kernel(block)])

    @settings(max_examples=50)
    @given(x=matrices, threads=st.integers(1, 3), one_scale=st.booleans())
    def holds(x: np.ndarray, threads: int, one_scale: bool) -> None:
        case = quantize_case(x, block, threads=threads, one_scale=one_scale)
        check(case, run(functions, case))

    holds()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("block", BLOCKS)
def test_slices_are_of_the_twins_bytes(target: str, block: int) -> None:
    """Whoever's slice a block is in; also where blocks are of two threads' slices."""
    functions = loaded(isa_of(target), [quantize_sliced_kernel(block)])
    for count, width in ((1, 1), (3, 64), (2, 172), (2, 256), (1, 300), (2, 449)):
        for threads in (1, 2, 3, 5):
            case = quantize_sliced_case(count, width, block, threads=threads)
            check(case, run(functions, case))


@given(x=matrices, block=st.sampled_from(BLOCKS))
def test_the_error_is_half_a_step(x: np.ndarray, block: int) -> None:
    ints, scales = quantize_rows(x, block)
    assert np.abs(ints.astype(np.int32)).max() <= PEAK
    step = np.repeat(scales.astype(np.float64), block, axis=1)[:, : x.shape[1]]
    # scale, its inverse and products with both are rounded to float32: four times, of PEAK steps
    rounding = 4 * PEAK * 2.0**-24
    assert (np.abs(ints * step - x) <= (0.5 + rounding) * step + 1.001 * LEAST).all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("threads", "private"), [(1, False), (3, False), (2, True)])
def test_a_fused_norm_is_the_twins(target: str, block: int, threads: int, private: bool) -> None:
    functions = loaded(isa_of(target), [norm_quantize_kernel(block)])
    for count, width in ((1, 1), (3, 33), (2, 64), (4, 172), (1, 300)):
        case = exact_norm_quantize_case(count, width, block, threads=threads, private=private)
        check(case, run(functions, case))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("block", BLOCKS)
def test_a_fused_norm_is_the_two_kernels_to_the_bit(target: str, block: int) -> None:
    """Of the twin's integers, where sums are added up in another order, it is off by at most 1."""
    lanes = isa_of(target).lanes
    kernels = [norm_kernel(), quantize_kernel(block), norm_quantize_kernel(block)]
    functions = loaded(isa_of(target), kernels)
    for width in (1, 33, 64, 172):
        rng = np.random.default_rng(width)
        x = rng.normal(size=(3, width)).astype(np.float32)
        x[1] = 0
        weight = rng.normal(size=width).astype(np.float32)
        first = norm_of(lanes, x, weight)
        normed = run(functions, first)["out"].reshape(3, -1)[:, :width]
        second = quantize_case(normed, block)
        wanted = run(functions, second)["out"]
        case = norm_quantize_case(x, weight, block, wanted)
        check(case, run(functions, case))
        layout = RowLayout(width, block)
        terms = wanted.view(np.int8).astype(np.int32)
        values = 256 * terms[:, :width] + terms[:, layout.padded : layout.padded + width]
        assert np.abs(values - norm_quantize_rows(x, weight, 1e-5, block)[0]).max() <= 1


def norm_of(lanes: int, x: np.ndarray, weight: np.ndarray) -> Case:
    """The norm alone, of rows that whole vectors may be written to."""
    width, end = x.shape[1], -(-x.shape[1] // lanes) * lanes
    slots: dict[str, int | str] = {
        "x": "x",
        "weight": "weight",
        "out": "out",
        "rows": len(x),
        "width": width,
        "size": width,
        "x_stride": 4 * end,
        "out_stride": 4 * end,
        "eps": float_slot(1e-5),
        "private": 0,
        "x_private": 0,
    }
    padded = np.pad(x, ((0, 0), (0, end - width)))
    buffers = {
        "x": padded,
        "weight": np.pad(weight, (0, end - width)),
        "out": np.zeros_like(padded),
    }
    return Case(f"norm {width}", buffers, [call(norm_kernel(), slots)])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("width", [32, 64, 128, 192])
def test_whole_blocks_end_where_they_should(target: str, width: int) -> None:
    """Nothing between what is behind each other: terms, scales, sums, rows."""
    x = np.random.default_rng(width).normal(size=(3, width)).astype(np.float32)
    for block in BLOCKS:
        case = quantize_case(x, block, threads=2)
        check(case, run(loaded(isa_of(target), [quantize_kernel(block)]), case))
