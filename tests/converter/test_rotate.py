"""Folded rotations: the same logits from other weights, or a refusal that says why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converter.calibrate import FloatTensors, Walk
from converter.convert import convert, prepare
from converter.plan import Formats
from converter.plant import Planting, plant
from converter.rotate import rotate
from converter.synth import synthesize
from converter.weights import Weights
from edge.bundle import Bundle
from edge.errors import UnsupportedMath
from edge.reference import Values
from tests.checkpoints import make_checkpoint
from tests.converter.quantize.layers import divergence
from tests.golden.variants import VARIANTS, token_ids

# Variants of the families whose residual stream can be rotated.
FOLDABLE = """llama llama_tied llama_attention_bias llama_mlp_bias llama_multi_head mistral qwen2
    qwen3 phi3 smollm3 bitnet"""


def weights_of(name: str, folder: Path) -> Weights:
    synthesize(VARIANTS[name].config, folder / "source", dtype="f32")
    return prepare(folder / "source", Formats.parse("f32")).weights


def logits_of(weights: Weights) -> Values:
    return Walk(weights.model.graph, FloatTensors(weights), [token_ids()]).finish()


@pytest.mark.parametrize("name", FOLDABLE.split())
def test_a_rotated_model_says_the_same(name: str, tmp_path: Path) -> None:
    plain = weights_of(name, tmp_path)
    turned = rotate(plain)
    exact = logits_of(plain)
    assert np.abs(logits_of(turned) - exact).max() < 1e-4 * np.abs(exact).max()
    tensors = FloatTensors(plain), FloatTensors(turned)
    for tensor in ("layers.1.q", "layers.1.o", "layers.1.up", "layers.1.down", "embed"):
        before, after = (each.dense(tensor) for each in tensors)
        assert np.abs(before - after).max() > 0.1 * np.abs(before).max(), tensor
    assert (tensors[1].dense("layers.0.attention_norm") == 1).all()


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("gemma2", "norm layers.0.attention_post_norm writes to it"),
        ("gemma3_text", "norm layers.0.attention_post_norm writes to it"),
        ("bitnet_ternary", "norm layers.0.attention_norm reads it"),
    ],
)
def test_what_does_not_fold_is_refused(name: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedMath, match=what):
        rotate(weights_of(name, tmp_path))


@pytest.mark.parametrize("form", ["w8g64", "w4g32"])
def test_outliers_in_weights_cost_less_when_rotated(
    form: str, stories: Path, tmp_path: Path
) -> None:
    """Rounded to nearest; planted outliers leave one column of a matrix at a hundredth."""
    job = prepare(stories, Formats.parse("f32"))
    plant(job.checkpoint, job.model, tmp_path / "planted", Planting(channels=8, share=1))
    plain, turned = (
        divergence(tmp_path / "planted", tmp_path, weights=form, rotated=rotated)
        for rotated in (False, True)
    )
    assert turned < 0.7 * plain, (plain, turned)


def test_a_shared_embedding_is_stored_twice(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "tiny", tie_word_embeddings=True)
    convert(source, tmp_path / "m", weights="w8g32", rotated=True)
    graph = Bundle.open(tmp_path / "m").graph
    assert graph.tensor("embed").role == "embedding"
    assert graph.tensor("head").role == "head"


def test_row_blocks_make_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turned = rotate(weights_of("llama", tmp_path))
    whole = FloatTensors(turned).dense("embed")
    monkeypatch.setattr("converter.weights.BLOCK_WEIGHTS", 1)
    assert len(list(turned.blocks("embed"))) > 1
    assert (FloatTensors(turned).dense("embed") == whole).all()
