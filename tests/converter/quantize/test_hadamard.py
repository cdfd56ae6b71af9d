from __future__ import annotations

import numpy as np
import pytest

from converter.quantize.hadamard import Rotation, transform
from edge.formats import Format
from tests.converter.quantize.layers import make_layer, nearest, output_error


@pytest.mark.parametrize("width", [1, 7, 48, 64, 172, 256])
def test_rotations_keep_lengths_and_angles(width: int) -> None:
    turned = Rotation.draw(width, 3).apply(np.eye(width))
    assert turned @ turned.T == pytest.approx(np.eye(width), abs=1e-12)


def test_the_transform_is_hadamards() -> None:
    two = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
    assert transform(np.eye(8)) == pytest.approx(np.kron(np.kron(two, two), two))


def test_runs_are_turned_alike() -> None:
    turn = Rotation.draw(12, 0)
    x = np.random.default_rng(0).normal(size=(5, 36))
    parts = [turn.apply(part) for part in np.split(x, 3, axis=1)]
    assert turn.apply(x) == pytest.approx(np.concatenate(parts, axis=1))


@pytest.mark.parametrize(("name", "least"), [("w4g64", 0.4), ("w3g64", 0.4), ("w2gc", 0.3)])
def test_weights_with_outliers_round_better(name: str, least: float) -> None:
    """Round to nearest; one weight in 100 is 10 times the others."""
    weights, inputs = make_layer(96, 256)
    rare = np.random.default_rng(1).random(weights.shape) < 0.01
    weights = np.where(rare, 10 * weights, weights).astype(np.float32)
    turn, form = Rotation.draw(256, 0), Format.parse(name)
    turned = [turn.apply(a.astype(np.float64)).astype(np.float32) for a in (weights, inputs)]
    plain = output_error(weights, nearest(form, weights), inputs)
    rotated = output_error(turned[0], nearest(form, turned[0]), turned[1])
    assert rotated < (1 - least) * plain, (plain, rotated)
