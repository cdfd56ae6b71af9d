"""What a manifest says of an NPU program: quantization, and its JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.npu import (
    Activation,
    Binary,
    Calibration,
    NpuRecord,
    Outliers,
    from_json,
    spanning,
    to_json,
)
from edge.target import Target

RECORD = NpuRecord(
    mode="w8a8",
    rows=32,
    float_gates=("layers.0.gated",),
    activations=(
        Activation("a", 8, 0.5, 3, -1.5, 126.0),
        Activation("b", 16, 0.1, 0, 0.0, 9.0, True, Outliers(1.0, 0.01, 2, (0, 5), 4.0, True)),
    ),
    calibration=Calibration("text.txt", 100, 0.5, 0.0, (1.0, 2.5)),
    binaries=(Binary("layers.0.qkv", Target.parse("npu:htp-v75"), "SM8650", "a.onnx", "a.bin"),),
    tools={"onnx": "1"},
    shadow="npu/shadow.safetensors",
)


def test_a_record_survives_json() -> None:
    assert from_json(json.loads(json.dumps(to_json(RECORD)))) == RECORD
    bare = replace(RECORD, shadow=None, binaries=())
    assert from_json(json.loads(json.dumps(to_json(bare)))) == bare


@pytest.mark.parametrize("key", ["mode", "rows", "activations", "calibration", "binaries"])
def test_a_wrong_type_is_refused(key: str) -> None:
    with pytest.raises((TypeError, AttributeError, KeyError, ValueError)):
        from_json(to_json(RECORD) | {key: 3.5})


@given(
    st.floats(-100, 0, width=32),
    st.floats(0, 100, width=32),
    st.sampled_from([8, 16]),
    st.integers(0, 2**32 - 1),
)
def test_codes_are_within_half_a_step(low: float, high: float, bits: int, seed: int) -> None:
    activation = spanning("x", bits, low, high)
    x = np.random.default_rng(seed).uniform(low, high, 50).astype(np.float32)
    error = np.abs(activation.decode(activation.encode(x)) - x)
    assert (error <= activation.scale * 1.01 + 1e-6).all()
    assert activation.decode(activation.encode(np.zeros(1, np.float32)))[0] == 0
    codes = np.arange(1 << bits, dtype=f"uint{bits}")
    np.testing.assert_array_equal(activation.encode(activation.decode(codes)), codes)


def test_what_is_outside_is_clipped() -> None:
    activation = spanning("x", 8, -1.0, 3.0)
    codes = activation.encode(np.array([-50.0, 50.0], np.float32))
    np.testing.assert_array_equal(codes, [0, 255])
    np.testing.assert_allclose([activation.least, activation.most], [-1, 3], atol=0.02)
