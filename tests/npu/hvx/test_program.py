"""Decode steps on an emulated Hexagon, against the reference and the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edge
from apps.cli import main
from converter.convert import convert
from edge.errors import UnknownTarget
from edge.sampler import Sampling
from npu.hvx import backend, emulator
from tests.checkpoints import make_checkpoint
from tests.npu.hvx.harness import require_emulator

TARGET = "npu:hvx-v67"


@pytest.fixture(scope="module", autouse=True)
def needs_emulator() -> None:
    require_emulator()


@pytest.mark.parametrize("weights", ["w1gca", "w2g32a", "w3g64", "w4g64", "w8gc", "ternary", "f16"])
def test_logits_are_as_the_references(weights: str, tmp_path: Path) -> None:
    bundle = tmp_path / "tiny.lutra"
    convert(make_checkpoint(tmp_path / "tiny"), bundle, weights=weights)
    tokens = [1, 2, 3, 4, 5, 6, 7]
    wanted = edge.load(bundle, target="ref").logits(tokens)
    made = edge.load(bundle, target=TARGET, cache_format="f32").logits(tokens)
    assert np.linalg.norm(made - wanted) < 1e-3 * np.linalg.norm(wanted)


@pytest.fixture(scope="module")
def stories_bundle(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("stories") / "stories.lutra"
    convert(stories, bundle, weights="w4g32")
    return bundle


def test_a_trained_model_tells_the_cpus_story(stories_bundle: Path) -> None:
    texts = [
        edge.load(stories_bundle, **targets).generate(
            "Once upon a time", max_tokens=40, sampling=Sampling.greedy()
        )
        for targets in ({}, {"target": TARGET})
    ]
    assert len(texts[0]) > 80
    assert texts[1] == texts[0]


def test_the_command_line_says_that_rates_are_emulated(
    stories_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", str(stories_bundle), "--decode", TARGET, "-p", "Once", "--max-tokens", "3"]
    assert main([*words, "--greedy"]) == 0
    assert f"[{TARGET}:" in (said := capsys.readouterr().err)
    assert "(emulated)" in said


def test_a_phones_target_is_refused_here(stories_bundle: Path) -> None:
    with pytest.raises(UnknownTarget, match=r"npu:hvx-v73 is a phone's"):
        edge.load(stories_bundle, target="npu:hvx-v73")


def test_without_an_emulator_the_reason_and_the_cure_are_named(
    stories_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulator, "QEMU", "no-such-emulator")
    reason = backend.BACKEND.leaves_out(None, edge.target.this_machine())
    assert "no-such-emulator" in reason
    assert "apt-get install qemu-user" in reason
    assert backend.BACKEND.targets(edge.target.this_machine()) == []
    with pytest.raises(UnknownTarget, match="no-such-emulator"):
        edge.load(stories_bundle, target=TARGET)
    assert edge.load(stories_bundle).program.target.kind in ("cpu", "ref")
