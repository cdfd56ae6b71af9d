"""Every model file against Transformers: logits of tiny models, stored by tests/golden/make.py."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import edge
from converter.convert import convert
from converter.models import build_model, model_types
from converter.synth import drawn_tensors, synthesize
from tests.golden.rotations import ROTATIONS
from tests.golden.store import PATH, fingerprint
from tests.golden.variants import VARIANTS, token_ids

Logits = NDArray[np.float32]

# float32 on both sides, summed in another order.
TOLERANCE = 1e-4
# Chunks differ in the order of sums alone.
CHUNK_TOLERANCE = 1e-5
# What a piece of math must change, so that leaving it out would be seen.
LEAST_DIFFERENCE = 0.1


@cache
def golden(name: str) -> Any:
    with np.load(PATH) as stored:
        return stored[name]


def distance(ours: Logits, theirs: Logits) -> float:
    """Largest difference, as a share of the largest logit."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def load(name: str, folder: Path) -> edge.Model:
    """The variant with its random weights, through the whole converter."""
    variant = VARIANTS[name]
    synthesize(variant.config, folder / "source", seed=variant.seed, dtype="f32")
    bundle = folder / f"{name}.lutra"
    convert(folder / "source", bundle, weights="f32", context=variant.context)
    return edge.load(bundle, target="ref")


def run_chunks(model: edge.Model, rows: int) -> Logits:
    """Logits of all tokens, `rows` at a time, the last chunk padded."""
    ids, cache_ = token_ids().astype(np.int32), model.session().cache
    made = []
    for first in range(0, len(ids), rows):
        chunk = np.zeros(rows, np.int32)
        count = min(rows, len(ids) - first)
        chunk[:count] = ids[first : first + count]
        made.append(model.program.run(chunk, count, cache_, count))
    return np.concatenate(made)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = load(name, tmp_path)
    logits = model.logits(token_ids())
    assert distance(logits, golden(name)) < TOLERANCE
    for rows in (1, 7, 32):
        assert distance(run_chunks(model, rows), logits) < CHUNK_TOLERANCE


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_are_those_of_the_golden_run(name: str) -> None:
    variant = VARIANTS[name]
    tensors = drawn_tensors(build_model(variant.config))
    weights = {tensor.name: tensor.values(variant.seed) for tensor in tensors}
    assert fingerprint(weights) == golden(f"{name}.weights"), "run tests/golden/make.py again"


@pytest.mark.parametrize("name", [n for n, v in VARIANTS.items() if v.differs_from])
def test_each_piece_of_math_shows_in_the_logits(name: str) -> None:
    other = VARIANTS[name].differs_from
    assert other is not None
    assert VARIANTS[other].seed == VARIANTS[name].seed
    assert distance(golden(name), golden(other)) > LEAST_DIFFERENCE


def test_every_model_file_has_a_variant() -> None:
    assert {variant.config["model_type"] for variant in VARIANTS.values()} == set(model_types())


def test_nothing_stored_is_left_over() -> None:
    with np.load(PATH) as stored:
        rotations = {f"rotation.{name}" for name in ROTATIONS}
        assert set(stored) - rotations == {*VARIANTS, *(f"{name}.weights" for name in VARIANTS)}
