"""Outliers matter: planted ones ruin static W8A8, and restoring them brings the text back."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.accuracy import npu
from apps.accuracy.npu import MODES, measure
from converter.plant import Planting
from converter.samples import Wanted
from edge.watch import Silent


def test_planted_outliers_are_restored_for_little(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converter.npu.WANTED", Wanted(count=512, length=128))
    names = ("w8a8, not restored", "w8a8, outliers restored")
    monkeypatch.setattr(npu, "MODES", {name: MODES[name] for name in names})
    rows = {
        (row.model, row.mode): row
        for row in measure(stories, tmp_path, "npu:ort", 256, Planting(), Silent())
    }
    planted = "outliers planted"
    assert rows[planted, "float"].kl < 1e-6
    ruined, restored = (rows[planted, name] for name in names)
    assert ruined.loss > 1
    assert restored.loss < 0.02
    assert restored.kl < 0.01
    assert restored.cpu_share < 0.01
    assert rows["as it is", names[1]].loss < 0.02
