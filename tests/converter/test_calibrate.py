from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edge
from converter.calibrate import FloatTensors, Walk
from converter.convert import convert, prepare
from converter.plan import Formats
from edge.graph import Attention, Linear
from tests.checkpoints import make_checkpoint

SAMPLES = [np.array([1, 2, 3, 4, 5]), np.array([7, 8]), np.arange(60)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source") / "tiny")


def start(checkpoint: Path) -> tuple[Walk, FloatTensors]:
    job = prepare(checkpoint, Formats.parse("f32"))
    tensors = FloatTensors(job.weights)
    return Walk(job.model.graph, tensors, SAMPLES), tensors


def test_logits_are_those_of_the_reference(checkpoint: Path, tmp_path: Path) -> None:
    walk, _ = start(checkpoint)
    ops = list(walk)
    convert(checkpoint, tmp_path / "m.lutra", weights="f32")
    model = edge.load(tmp_path / "m.lutra", target="ref")
    expected = np.concatenate([model.logits(sample) for sample in SAMPLES])
    assert walk.value(ops[-1].out) == pytest.approx(expected, abs=1e-5)


def test_inputs_are_there_when_an_op_is_given_and_gone_after_their_last_use(
    checkpoint: Path,
) -> None:
    walk, _ = start(checkpoint)
    seen = {}
    for op in walk:
        for name in op.inputs():
            seen[name] = walk.value(name).shape
    assert seen["layers.0.attention_norm"] == (67, 32)
    assert seen["layers.1.gated"] == (67, 172)
    with pytest.raises(KeyError):
        walk.value("layers.0.attention_norm")


def test_weights_replaced_before_an_op_runs_are_used_by_it(checkpoint: Path) -> None:
    walk, tensors = start(checkpoint)
    for op in walk:
        if isinstance(op, Linear) and op.weight == "layers.0.v":
            tensors.replace(op.weight, np.zeros_like(tensors.dense(op.weight)))
        if isinstance(op, Attention) and op.cache == 0:
            assert not walk.value(op.value).any()
            tensors.forget("layers.0.v")
    assert tensors.dense("layers.0.v").any()


def test_a_fork_goes_on_alone(checkpoint: Path) -> None:
    """From the op that a walk is at, with other weights; the walk itself is as it was."""
    walk, tensors = start(checkpoint)
    exact = start(checkpoint)[0].finish()
    for op in walk:
        if isinstance(op, Linear) and op.weight == "layers.1.down":
            assert walk.fork(tensors).finish() == pytest.approx(exact, abs=1e-6)
            tensors.replace(op.weight, np.zeros_like(tensors.dense(op.weight)))
            assert np.abs(walk.fork(tensors).finish() - exact).max() > 0.01
            tensors.forget(op.weight)
        last = op.out
    assert walk.value(last) == pytest.approx(exact, abs=1e-6)
