"""Ranges of the NPU's activations: thresholds, hot channels, what is pruned."""

from __future__ import annotations

import numpy as np
import pytest

from converter.calibrate import FloatTensors
from converter.convert import Job, prepare
from converter.plan import Formats
from converter.ranges import Choices, Ranges, choose_threshold, find_outliers, find_ranges
from edge.pieces import static_pieces
from edge.watch import Silent
from tests.checkpoints import make_checkpoint

SAMPLES = [np.arange(start, start + 40, dtype=np.int32) for start in (0, 100, 200)]


def normal(channels: int = 100) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((400, channels)).astype(np.float32)


def test_a_normal_tail_is_mostly_inside() -> None:
    found = find_outliers(normal())
    assert found.share <= 0.001
    assert found.threshold > 3


def test_a_channel_far_out_goes_to_the_cpu() -> None:
    x = normal()
    x[:, 7] *= 60
    found = find_outliers(x)
    assert found.threshold < 5
    assert 0.005 < found.share < 0.02
    assert found.hot_channels == (7,)
    assert found.importance > 20


def test_hot_channels_are_the_fewest_with_80_percent() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (400, 300)).astype(np.float32)
    x[:, 3] *= 60  # 400 outliers or so
    x[::2, 5] *= 60  # half as many
    x[::40, 9] *= 60  # ten
    found = find_outliers(x)
    assert found.hot_channels == (3, 5)
    assert found.channels >= 3


@pytest.mark.parametrize("x", [np.zeros((4, 4), np.float32), np.full((4, 4), 2, np.float32)])
def test_a_constant_has_no_outliers(x: np.ndarray) -> None:
    assert choose_threshold(np.abs(x)) == x.max()
    found = find_outliers(x)
    assert found.share == 0
    assert found.hot_channels == ()


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("ranges")
    return prepare(make_checkpoint(folder / "tiny"), Formats.parse("f32"))


def ranges(job: Job, choices: Choices) -> Ranges:
    return find_ranges(job.model.graph, FloatTensors(job.weights), SAMPLES, choices, Silent())


def test_all_values_that_an_npu_sees_have_ranges(job: Job) -> None:
    for choices in (Choices("w8a8"), Choices("w8a8", pruned=1.0), Choices("w8a16")):
        made = ranges(job, choices)
        values = {activation.value for activation in made.activations}
        for piece in static_pieces(job.model.graph, made.float_gates):
            assert {*piece.inputs, *piece.outputs, *(op.out for op in piece.ops)} <= values
        assert {a.bits for a in made.activations} == {choices.bits}


def test_the_least_important_layers_are_pruned_first(job: Job) -> None:
    made = ranges(job, Choices("w8a8", pruned=0.5))
    important = int(np.argmax(made.layer_importance))
    assert made.float_gates == (f"layers.{important}.gated",)
    restored = {a.value.split(".")[1] for a in made.activations if a.restored}
    assert restored == {str(important)}


def test_smoothing_evens_channels_out(job: Job) -> None:
    plain, smooth = ranges(job, Choices("w8a8")), ranges(job, Choices("w8a8", smoothing=0.5))
    name = "layers.0.attention_norm"
    assert name not in plain.factors
    assert smooth.factors[name].shape == (32,)
    assert np.exp(np.log(smooth.factors[name]).mean()) == pytest.approx(1, rel=1e-4)


def test_16_bit_ranges_reach_beyond_what_was_seen(job: Job) -> None:
    made = {a.value: a for a in ranges(job, Choices("w8a16")).activations}
    activation = made["layers.0.attention_norm"]
    assert activation.most > activation.high * 1.2
    assert activation.least < activation.low * 1.2
