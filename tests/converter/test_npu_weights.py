"""The NPU's weights by calibration: on its grids, and closer than rounding to nearest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.calibrate import FloatTensors, Walk
from converter.calibrated import Method
from converter.convert import prepare
from converter.npu_weights import FORMS, calibrated_weights, snap_blocks
from converter.plan import Formats
from converter.quantize.gptq import Effort
from converter.quantize.grid import Grid
from converter.samples import Samples
from converter.synth import synthesize
from edge.graph import Linear
from edge.watch import Silent
from npu.htp.weights import MOST_STEPS, quantize
from tests.golden.variants import VARIANTS

METHOD = Method(Effort(rounds=2), correction=0.0)

# Of the squared output error of rounding to nearest, what may be left (measured: 0.62 and 0.53).
MARGIN = {4: 0.7, 8: 0.6}


@given(st.floats(0.01, 100), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_scales_are_whole_multiples_and_float16(size: float, groups: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    scales = (size * random.uniform(-1, 1, (7, groups))).astype(np.float32)
    made = snap_blocks(Grid(FORMS[4], scales, np.full(scales.shape, 8, np.float32))).scales
    np.testing.assert_array_equal(made, made.astype(np.float16).astype(np.float32))
    unit = np.abs(scales).max(axis=1, keepdims=True) / MOST_STEPS  # but for its rounding
    steps = made / unit
    np.testing.assert_allclose(steps, np.rint(steps), rtol=0.01)
    assert steps.min() > 0.98
    assert steps.max() < 1.02 * MOST_STEPS


@pytest.mark.parametrize("bits", [4, 8])
def test_calibration_beats_rounding_to_nearest(bits: int, tmp_path: Path) -> None:
    pytest.importorskip("numba", reason="GPTQ's loops are Numba's")
    synthesize(VARIANTS["llama"].config, tmp_path / "source", seed=0, dtype="f32")
    job = prepare(tmp_path / "source", Formats.parse("f32"))
    graph, tensors = job.model.graph, FloatTensors(job.weights)
    drawn = np.random.default_rng(0).integers(0, graph.vocabulary, (8, 64), np.int32)
    samples = Samples(tuple(drawn), "random tokens")
    made = calibrated_weights(graph, job.weights, bits, samples, METHOD, Silent())
    left = {"calibrated": 0.0, "nearest": 0.0}
    walk = Walk(graph, tensors, samples.sequences)
    for op in walk:
        if isinstance(op, Linear) and op.weight in made:
            x, rows = walk.value(op.x), tensors.dense(op.weight)
            for name, weights in (
                ("calibrated", made[op.weight]),
                ("nearest", quantize(rows, bits)),
            ):
                error = x @ (weights.dequantized()[: x.shape[1]] - rows.T)
                left[name] += float(np.square(error).sum())
    assert left["calibrated"] < MARGIN[bits] * left["nearest"]
