"""Chunk lengths: what a prompt gives does not depend on how it is cut, nor on padding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import edge
from converter.samples import Wanted
from converter.synth import synthesize
from edge.bundle import Bundle
from edge.npu import CHUNKS, Form, Mode
from edge.pair import Pair
from npu.htp.backend import sessions
from npu.htp.chunks import cut
from npu.htp.placed import STAND_IN
from tests.golden.variants import VARIANTS
from tests.npu.htp.conftest import MakeBundle
from tests.npu.htp.measure import divergence

CONTEXT = 272
PROMPTS = (31, 32, 33, 65, 129, 257)
TOKENS = np.random.default_rng(2).integers(3, 96, CONTEXT).astype(np.int32)


Bundles = Callable[[Form, Mode], dict[int, Path]]


@pytest.fixture
def bundles(
    make_bundle: MakeBundle,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Bundles:
    """One of each chunk length, of a tiny model whose context is longer than the longest."""
    monkeypatch.setattr("converter.npu.WANTED", Wanted(count=64, length=64))
    folder = tmp_path_factory.mktemp("long") / "source"
    size = {"max_position_embeddings": CONTEXT, "num_hidden_layers": 2}
    synthesize(VARIANTS["llama"].config | size, folder, seed=0, dtype="f32")

    def make(form: Form, mode: Mode) -> dict[int, Path]:
        settings = {"checkpoint": folder, "form": form, "mode": mode}
        return {rows: make_bundle("long", "npu:ort", rows=rows, **settings) for rows in CHUNKS}

    return make


# How far logits of 1 to 3 may be apart: float sums of another length. Layers round softmax over a
# chunk and the cache, so that a code here and there is another (measured: 0 and 7e-4).
NEAR = {"pieces": 1e-4, "layers": 3e-3}


@pytest.mark.parametrize(("form", "mode"), [("pieces", "w8a8"), ("layers", "w4a16")])
def test_every_length_gives_the_same(form: Form, mode: Mode, bundles: Bundles) -> None:
    made: dict[int, list[np.ndarray]] = {}
    for rows, bundle in bundles(form, mode).items():
        model = edge.load(bundle, prefill="npu:ort", decode="ref")
        assert isinstance(model.program, Pair)
        made[rows] = []
        for count in PROMPTS:
            cache = model.session().cache
            made[rows].append(model.program.prompt.run_prompt(TOKENS[:count], cache, 1))
            assert cache.length == count
    for rows in CHUNKS[1:]:
        for one, other in zip(made[CHUNKS[0]], made[rows], strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=NEAR[form])
            assert divergence(one, other) < 1e-6


def test_pieces_are_the_same_integers(bundles: Bundles) -> None:
    """A row's codes depend on no other row, so every length gives them exactly."""
    given = np.random.default_rng(0)
    by_rows = {
        rows: sessions(Bundle.open(bundle), STAND_IN)
        for rows, bundle in bundles("pieces", "w8a8").items()
    }
    for name, longest in by_rows[256].items():
        first = longest.get_inputs()[0]
        codes = given.integers(0, 256, first.shape).astype(np.uint8)
        want = longest.run(None, {first.name: codes})
        for rows, pieces in by_rows.items():
            parts = [
                pieces[name].run(None, {first.name: part})
                for part in np.split(codes, len(codes) // rows)
            ]
            for made, whole in zip(zip(*parts, strict=True), want, strict=True):
                np.testing.assert_array_equal(np.concatenate(made), whole)


def test_a_prompt_is_cut_exactly() -> None:
    for count in PROMPTS:
        for logit_rows in (0, 1, count):
            parts = list(cut(TOKENS[:count], 32, logit_rows))
            assert [part.first for part in parts] == list(range(0, count, 32))
            np.testing.assert_array_equal(
                np.concatenate([part.tokens for part in parts]), TOKENS[:count]
            )
            assert all(len(part.tokens) == 32 for part in parts[:-1])
            assert sum(part.logit_rows for part in parts) == logit_rows
            assert parts[-1].logit_rows == min(logit_rows, len(parts[-1].tokens))
