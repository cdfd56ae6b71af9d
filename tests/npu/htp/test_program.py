"""Prefill on an NPU and decode on the CPU, with ONNX Runtime standing in for the NPU."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import edge
from converter.models import model_types
from edge.backend import choose_prompt_target, prompt_backend_for
from edge.bundle import Bundle
from edge.errors import MissingDependency, UnknownTarget
from edge.jobs import NPU
from edge.kvcache import KVCache
from edge.npu import Binary, Mode
from edge.pair import Pair
from edge.target import Machine, Target
from npu.htp.program import HtpProgram
from tests.golden.variants import VARIANTS, token_ids
from tests.npu.htp.conftest import MakeBundle
from tests.npu.htp.measure import divergence

GREEDY = edge.Sampling.greedy()

# Mean KL divergence in nats a token that each mode may cost tiny models of random weights, whose
# predictions are 0.3 to 0.7 nats from knowing nothing.
BOUNDS = {"w8a8": 0.02, "w8a16": 0.003, "w4a16": 0.1}

# One tiny model of each architecture, and those with biases.
MODELS = [n for n in VARIANTS if n in {*model_types(), "bitnet_ternary", "llama_mlp_bias"}]


def program(model: edge.Model) -> HtpProgram:
    assert isinstance(model.program, Pair)
    assert isinstance(model.program.prompt, HtpProgram)
    return model.program.prompt


# Those whose math differs in the pieces: biases, gates, a norm between two projections.
OTHERS = ("llama_mlp_bias", "gemma2", "bitnet_ternary")


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, "w8a8") for name in MODELS]
    + [(name, mode) for name in OTHERS for mode in ("w8a16", "w4a16")],
)
def test_every_architecture_is_close_to_float(
    name: str, mode: Mode, make_bundle: MakeBundle
) -> None:
    bundle = make_bundle(name, "npu:ort", mode=mode)
    exact = edge.load(bundle, target="ref").logits(token_ids())
    model = edge.load(bundle, prefill="npu:ort", decode="ref")
    made = model.logits(token_ids())
    assert divergence(exact, made) < BOUNDS[mode]
    assert program(model).tally.outlier_share < 0.01
    session = model.session()
    drawn = list(model.stream(token_ids()[:5], max_tokens=3, sampling=GREEDY, session=session))
    assert session.cache.length == 5 + len(drawn) - 1


def test_every_model_file_has_a_test() -> None:
    assert {VARIANTS[name].config["model_type"] for name in MODELS} == set(model_types())


@pytest.fixture
def model(make_bundle: MakeBundle) -> edge.Model:
    return edge.load(make_bundle("llama", "npu:ort"), prefill="npu:ort", decode="ref")


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 63, 64])
def test_padding_and_chunks_change_nothing(count: int, model: edge.Model) -> None:
    ids = np.resize(token_ids(), 64)
    whole = program(model).run_prompt(ids.astype(np.int32), model.session().cache, 64)
    cache = model.session().cache
    made = program(model).run_prompt(ids[:count].astype(np.int32), cache, count)
    np.testing.assert_allclose(made, whole[:count], atol=1e-4)
    assert cache.length == count


def test_a_prompt_goes_on_behind_the_cache(model: edge.Model) -> None:
    ids = np.resize(token_ids(), 50).astype(np.int32)
    whole = program(model).run_prompt(ids, model.session().cache, 50)
    cache = model.session().cache
    program(model).run_prompt(ids[:10], cache, 0)
    made = program(model).run_prompt(ids[10:], cache, 40)
    np.testing.assert_allclose(made, whole[10:], atol=1e-4)


def test_orders_give_the_same(model: edge.Model) -> None:
    ids = np.resize(token_ids(), 64).astype(np.int32)
    made, caches = [], []
    for in_order in (True, False, False):
        program(model).in_order = in_order
        caches.append(model.session().cache)
        made.append(program(model).run_prompt(ids, caches[-1], 1))
        timeline = program(model).timeline
        assert timeline is not None
        assert len(timeline.on(NPU)) == 2 * 4 * 3  # chunks, pieces with the gate apart, layers
    for logits, cache in zip(made[1:], caches[1:], strict=True):
        np.testing.assert_array_equal(logits, made[0])
        for layer in range(3):
            np.testing.assert_array_equal(cache.keys[layer], caches[0].keys[layer])


def test_decode_reads_the_cache_that_prefill_wrote(
    model: edge.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values go into the arrays that decode has, and nothing copies them."""
    session = model.session()
    session.cache.reserve(64)
    arrays = [*session.cache.keys, *session.cache.values]
    monkeypatch.setattr(KVCache, "_grown", lambda *_: pytest.fail("the cache was copied"))
    list(model.stream(token_ids(), max_tokens=3, sampling=GREEDY, session=session))
    for before, after in zip(arrays, [*session.cache.keys, *session.cache.values], strict=True):
        assert before is after
        assert np.abs(after[:, :24]).max() > 0


def test_single_tokens_are_decoded_elsewhere(model: edge.Model) -> None:
    program(model).timeline = None
    list(model.stream([5], max_tokens=3, sampling=GREEDY))
    assert program(model).timeline is None
    list(model.stream([5, 6], max_tokens=3, sampling=GREEDY))
    assert program(model).timeline is not None


def test_the_place_says_what_stands_in(model: edge.Model) -> None:
    assert "npu:ort (ONNX Runtime's CPU provider, standing in" in model.place
    assert model.place.endswith("decode on ref")
    assert not model.prefill_emulated


def test_auto_takes_no_stand_in(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("llama", "npu:ort")
    assert choose_prompt_target(Bundle.open(bundle)) is None
    assert edge.load(bundle, target="ref").place == "ref"
    assert edge.load(bundle, prefill="cpu", decode="ref").place == "ref"


def test_auto_takes_this_machines_npu(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(make_bundle("llama", "npu:ort"))
    phone = Machine("aarch64", "android", frozenset({"neon"}))
    monkeypatch.setattr("npu.htp.backend.this_soc", lambda: "SM8650")
    assert choose_prompt_target(bundle, phone) is None
    record = bundle.manifest.npu
    assert record is not None
    target = Target.parse("npu:htp-v75")
    object.__setattr__(record, "binaries", (Binary("p", target, "SM8650", "a", "b"),))
    assert choose_prompt_target(bundle, phone) == target
    monkeypatch.setattr("npu.htp.backend.this_soc", lambda: "SM8550")
    assert choose_prompt_target(bundle, phone) is None


def test_an_npu_is_no_target_of_its_own(make_bundle: MakeBundle) -> None:
    with pytest.raises(UnknownTarget, match="--prefill npu:ort"):
        edge.load(make_bundle("llama", "npu:ort"), target="npu:ort")


def test_the_story_goes_on(make_bundle: MakeBundle, stories: Path) -> None:
    bundle = make_bundle("stories", "npu:ort", checkpoint=stories, weights="w8gc")
    model = edge.load(bundle, prefill="npu:ort", decode="ref")
    text = model.generate("Once upon a time", max_tokens=20, sampling=GREEDY)
    assert text.startswith(", there was a little girl named Lily.")


def test_doctor_says_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = prompt_backend_for(Target.parse("npu:ort"))
    assert "standing in" in backend.check(Target.parse("npu:ort"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match="onnxruntime"):
        backend.check(Target.parse("npu:ort"))
