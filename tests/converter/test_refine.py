"""Refinement by the float model's predictions: what it gains, and that it never loses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.calibrate import FloatTensors
from converter.calibrated import Method
from converter.convert import convert, prepare
from converter.plan import Formats
from converter.quality import METHODS
from converter.quantize.gptq import GPTQ_ALONE
from converter.refine import Draft, Refined, Refinement, refine
from converter.samples import KeptTensors, Samples, Wanted, draw_samples
from edge.bundle import Bundle
from edge.planes import dequantize
from edge.watch import Silent
from tests.checkpoints import make_checkpoint


def draft_of(source: Path, out: Path, form: str) -> tuple[Draft, Samples]:
    """A checkpoint rounded to nearest, and 64 sequences of 32 tokens that the float model draws."""
    convert(source, out, weights=form, head=form)
    bundle, job = Bundle.open(out), prepare(source, Formats.parse("f32"))
    exact = KeptTensors(bundle.graph, FloatTensors(job.weights))
    stored = {tensor.name: bundle.tensor(tensor.name) for tensor in bundle.graph.tensors}
    learned = frozenset(t.name for t in bundle.graph.tensors if t.role != "constant")
    return Draft(bundle.graph, exact, stored, learned), draw_samples(bundle.graph, exact, 1, 32, 64)


SHORT = Refinement(steps=30, batch=16)


def test_a_trained_model_gains_over_round_to_nearest(stories: Path, tmp_path: Path) -> None:
    """Over a third of the KL divergence, in 30 steps of 512 tokens, on sequences kept apart."""
    draft, samples = draft_of(stories, tmp_path / "m", "w3g32")
    assert refine(draft, samples, SHORT, Silent()).gain > 0.35


@pytest.mark.parametrize("form", ["w1g32", "w1g64a", "w2g32a", "w2gc", "ternary", "w2g64"])
def test_every_kind_of_scale_is_learned(form: str, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "tiny", bos_token_id=1, tie_word_embeddings=True)
    draft, samples = draft_of(source, tmp_path / "m", form)
    made = refine(draft, samples, SHORT, Silent())
    assert made.gain > 0.02
    assert made.matrices.keys() | made.vectors.keys() == draft.learned
    for name, quantized in made.matrices.items():
        before = draft.stored[name].quantized()
        assert quantized.codes.max() < draft.stored[name].form.levels
        assert (quantized.codes == before.codes).mean() > 0.7
        assert quantized.scales == pytest.approx(before.scales, rel=0.2)
        assert (quantized.scales != before.scales).any()


def test_what_gains_nothing_is_left(tmp_path: Path) -> None:
    """At a rate that throws all codes about."""
    source = make_checkpoint(tmp_path / "tiny", bos_token_id=1)
    draft, samples = draft_of(source, tmp_path / "m", "w3g32")
    wild = replace(SHORT, steps=3, code_rate=3.0, scale_rate=2.0)
    assert refine(draft, samples, wild, Silent()) == Refined({}, {}, 0.0)


def test_a_bundle_has_what_was_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_checkpoint(tmp_path / "tiny", bos_token_id=1)
    method = Method(GPTQ_ALONE, samples=Wanted(512, 64), refinement=SHORT)
    monkeypatch.setitem(METHODS, "best", method)
    made: dict[str, Any] = {}

    def learn(draft: Draft, *_others: object) -> Refined:
        for name in draft.learned:
            if draft.stored[name].form.quantized:
                quantized = draft.stored[name].quantized()
                made[name] = replace(quantized, codes=7 - quantized.codes)
            else:
                made[name] = 2 * draft.stored[name].dequantized()
        matrices = {name: m for name, m in made.items() if not isinstance(m, np.ndarray)}
        vectors = {name: v for name, v in made.items() if isinstance(v, np.ndarray)}
        return Refined(matrices, vectors, 0.5)

    monkeypatch.setattr("converter.convert.refine", learn)
    convert(source, tmp_path / "m", weights="w3g32", head="w3g32", quality="best")
    bundle = Bundle.open(tmp_path / "m")
    assert {"embed", "head", "norm", "layers.1.down"} <= made.keys()
    for name, expected in made.items():
        tensor = bundle.tensor(name)
        values = tensor.dequantized()
        if tensor.form.quantized:
            expected = dequantize(tensor.form, expected)
            assert bundle.manifest.tensors[name].relative_rms_error > 0.5
        assert (values == expected).all()
