"""Weights of NPU graphs."""

from __future__ import annotations

import numpy as np

from npu.htp.weights import BLOCK, MOST_STEPS, quantize


def drawn(out: int = 24, width: int = 96) -> np.ndarray:
    random = np.random.default_rng(3)
    return (random.standard_normal((out, width)) * random.uniform(0.1, 2, (out, 1))).astype("f4")


def error(rows: np.ndarray, bits: int) -> float:
    made = quantize(rows, bits).dequantized().T
    return float(np.sqrt(np.square(made - rows).mean() / np.square(rows).mean()))


def test_int8_is_within_half_a_step_of_each_channel() -> None:
    rows = drawn()
    made = quantize(rows, 8)
    assert made.codes.dtype == np.int8
    assert made.codes.shape == (96, 24)
    assert (np.abs(made.dequantized().T - rows) <= made.scales[:, None] * 0.501).all()


def test_int4_scales_are_whole_steps_of_a_channel() -> None:
    made = quantize(drawn(), 4)
    assert made.scales.shape == (96 // BLOCK, 24)
    assert made.codes.min() >= -8
    assert made.codes.max() <= 7
    blocks = np.abs(drawn()).reshape(24, -1, BLOCK)
    unit = blocks.max(axis=(1, 2)) / (7 * MOST_STEPS)  # a channel's
    steps = made.scales / unit
    np.testing.assert_allclose(steps, np.rint(steps), rtol=1e-5)
    assert steps.min() >= 1 - 1e-5
    assert steps.max() <= MOST_STEPS + 1e-4


def test_int4_beats_plain_block_peaks() -> None:
    rows = drawn()
    blocks = rows.reshape(len(rows), -1, BLOCK)
    scales = np.abs(blocks).max(axis=2, keepdims=True) / 7
    plain = np.clip(np.rint(blocks / scales), -8, 7) * scales
    plain_error = np.sqrt(np.square(plain - blocks).mean() / np.square(rows).mean())
    assert error(rows, 4) < 0.98 * plain_error
    assert error(rows, 8) < error(rows, 4) / 8


def test_a_channel_of_zeros_stays_zero() -> None:
    rows = drawn()
    rows[5] = 0
    for bits in (4, 8):
        np.testing.assert_array_equal(quantize(rows, bits).dequantized()[:, 5], 0)
