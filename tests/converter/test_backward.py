"""Gradients against differences, for every op and family; the forward run against the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converter.backward import GRADIENTS, SLOPES, Tape
from converter.calibrate import FloatTensors, Walk
from converter.convert import prepare
from converter.plan import Formats
from converter.synth import synthesize
from edge.graph import OPS
from edge.reference import GATES, Values
from tests.golden.variants import VARIANTS

TOKENS = np.random.default_rng(0).integers(3, 90, (2, 20)).astype(np.int32)

FAMILIES = ["llama", "llama_tied", "llama_mlp_bias", "qwen2", "qwen3", "phi3", "gemma2", "bitnet"]


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_slopes(name: str, tmp_path: Path) -> None:
    """Along one random direction of each tensor, of a random sum of the logits."""
    synthesize(VARIANTS[name].config, tmp_path / "a", dtype="f32")
    job = prepare(tmp_path / "a", Formats.parse("f32"))
    graph, tensors = job.model.graph, FloatTensors(job.weights)
    tape = Tape(graph, tensors)
    logits = tape.forward(TOKENS)
    walk = Walk(graph, tensors, list(TOKENS))
    assert logits == pytest.approx(walk.finish(), abs=1e-4 * float(np.abs(logits).max()))
    random = np.random.default_rng(1)
    weights = random.normal(size=logits.shape).astype(np.float32)
    gradients = tape.backward(weights)

    def total(tensor: str, values: Values) -> float:
        tensors.replace(tensor, values)
        made = Tape(graph, tensors).forward(TOKENS)
        tensors.forget(tensor)
        return float((made.astype(np.float64) * weights).sum())

    for tensor in ("embed", "layers.0.q", "layers.0.k", "layers.1.v", "layers.1.gate", "norm"):
        values = tensors.dense(tensor)
        # along the gradient, with noise so that directions beside it count too
        way = gradients[tensor] / np.abs(gradients[tensor]).max()
        way = way + 0.1 * random.normal(size=values.shape).astype(np.float32)
        step = np.float32(1e-3 * np.abs(values).mean())
        slope = (total(tensor, values + step * way) - total(tensor, values - step * way)) / (
            2 * float(step)
        )
        assert slope == pytest.approx(float((gradients[tensor] * way).sum()), rel=0.02), tensor


@pytest.mark.parametrize("name", sorted(SLOPES))
def test_slopes_of_gates(name: str) -> None:
    x = np.linspace(-4, 4, 37, dtype=np.float32)
    function, slope = SLOPES[name](x)  # type: ignore[index]
    assert function == pytest.approx(GATES[name](x), abs=1e-6)  # type: ignore[index]
    step = np.float32(1e-2)
    difference = (GATES[name](x + step) - GATES[name](x - step)) / (2 * step)  # type: ignore[index]
    assert slope[np.abs(x) > step] == pytest.approx(difference[np.abs(x) > step], abs=1e-3)


def test_every_op_has_a_gradient() -> None:
    assert set(GRADIENTS) == set(OPS.values())
