"""Planted outliers: the same logits from other activations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converter.calibrate import FloatTensors, Walk
from converter.convert import prepare
from converter.plan import Formats
from converter.plant import Planting, plant
from converter.synth import synthesize
from tests.golden.variants import VARIANTS, token_ids


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma3_text", "qwen2"])
def test_logits_stay_and_activations_do_not(name: str, tmp_path: Path) -> None:
    synthesize(VARIANTS[name].config, tmp_path / "a", dtype="f32")
    before = prepare(tmp_path / "a", Formats.parse("f32"))
    norms = plant(before.checkpoint, before.model, tmp_path / "b", Planting(channels=2, share=1))
    after = prepare(tmp_path / "b", Formats.parse("f32"))
    assert len(norms) == 2 * 3
    logits, peaks = [], []
    for job in (before, after):
        walk = Walk(job.model.graph, FloatTensors(job.weights), [token_ids()])
        for op in walk:
            if op.out == "layers.1.q":
                x = np.abs(walk.value("layers.1.attention_norm"))
                peaks.append(float(x.max() / np.median(x)))
            last = op.out
        logits.append(walk.value(last))
    assert np.abs(logits[1] - logits[0]).max() < 1e-4 * np.abs(logits[0]).max()
    assert peaks[1] > 10 * peaks[0]
