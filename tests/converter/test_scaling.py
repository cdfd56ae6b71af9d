"""Activation-aware scales of a model: the same logits, less lost where activations stand out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converter.convert import convert, prepare
from converter.plan import Formats
from converter.plant import Planting, plant
from converter.quantize.awq import to_nearest
from converter.samples import Samples, Wanted
from converter.scaling import find_scales, places
from converter.synth import synthesize
from converter.weights import Weights
from edge.bundle import Bundle
from edge.watch import Silent
from tests.checkpoints import make_checkpoint
from tests.converter.quantize.layers import divergence
from tests.converter.test_rotate import FOLDABLE, logits_of
from tests.golden.variants import VARIANTS, token_ids


@pytest.mark.parametrize("name", [*FOLDABLE.split(), "gemma2", "gemma3_text"])
def test_a_scaled_model_says_the_same(name: str, tmp_path: Path) -> None:
    synthesize(VARIANTS[name].config, tmp_path / "a", dtype="f32")
    job = prepare(tmp_path / "a", Formats.parse("w3g32"))
    planned = {p.tensor.name: p for p in job.plan.tensors if p.form.quantized}
    samples = Samples((token_ids().astype(np.int32),), "")
    folds = find_scales(job.weights, planned, (), samples, to_nearest, Silent())
    assert len(folds) > 5
    exact = logits_of(job.weights)
    scaled = Weights(job.model, job.checkpoint, folds)
    assert np.abs(logits_of(scaled) - exact).max() < 1e-4 * np.abs(exact).max()


def test_places_are_those_that_fold(tmp_path: Path) -> None:
    """BitNet's rounding of activations stands between a norm and what reads it."""
    found = {}
    for name in ("llama", "bitnet", "bitnet_ternary"):
        synthesize(VARIANTS[name].config, tmp_path / name, dtype="f32")
        graph = prepare(tmp_path / name, Formats.parse("f32")).model.graph
        found[name] = [place.divided for place in places(graph)]
    assert found["llama"][:4] == [
        ("layers.0.attention_norm",),
        ("layers.0.v",),
        ("layers.0.feed_forward_norm",),
        ("layers.0.up",),
    ]
    assert found["bitnet"][1] == ("layers.0.attention_sub_norm",)
    assert found["bitnet_ternary"] == [("norm",)]


def test_planted_outliers_cost_less(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converter.convert.WANTED", Wanted(2048, 128))
    job = prepare(stories, Formats.parse("f32"))
    plant(job.checkpoint, job.model, tmp_path / "planted", Planting(channels=8, share=1))
    plain, scaled = (
        divergence(tmp_path / "planted", tmp_path, weights="w4g32", scaled=scaled)
        for scaled in (False, True)
    )
    assert scaled < 0.6 * plain, (plain, scaled)


def test_a_bundle_has_the_scales_in_its_norms(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "tiny", bos_token_id=1)
    for scaled in (False, True):
        convert(source, tmp_path / str(scaled), weights="w2g32", scaled=scaled)
    plain, made = (Bundle.open(tmp_path / name) for name in ("False", "True"))
    norms = [b.tensor("layers.0.feed_forward_norm").dequantized() for b in (plain, made)]
    assert (norms[0] != norms[1]).any()
