"""Whole decode steps through FastRPC, the skel and its checks, on the stand-in for a phone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edge
from converter.convert import convert
from edge.backend import Program
from edge.bundle import Bundle
from edge.errors import CallRefused
from edge.kvcache import CacheFormat, KVCache
from edge.model import Model
from edge.sampler import Sampling
from edge.target import Target
from npu.hvx import fastrpc, program
from npu.hvx import phone as phones
from npu.hvx.phone import PhoneDevice
from npu.hvx.program import HvxProgram
from tests.checkpoints import make_checkpoint
from tests.npu.hvx import phone

TARGET = Target.parse("npu:hvx-v67")


@pytest.fixture(scope="module", autouse=True)
def needs_standin() -> None:
    phone.require_standin()


def formats_of(bundle: Bundle) -> tuple[str, ...]:
    return tuple(sorted({str(record.form) for record in bundle.manifest.tensors.values()}))


def phones_program(bundle: Bundle, contexts: int = 1) -> HvxProgram:
    session = phone.opened(contexts, formats_of(bundle))
    return HvxProgram(bundle, TARGET, PhoneDevice(session), session.contexts)


def tiny(folder: Path, weights: str) -> Bundle:
    convert(make_checkpoint(folder / "tiny"), folder / "tiny.lutra", weights=weights)
    return Bundle.open(folder / "tiny.lutra")


def steps(made: HvxProgram, cache: KVCache, tokens: list[int]) -> np.ndarray:
    """Logits behind every token."""
    return np.concatenate([made.run(np.array([t], np.int32), 1, cache, 1) for t in tokens])


@pytest.mark.parametrize(("weights", "form"), [("w2g64a", "f16"), ("w8gc", "int8"), ("f16", "f32")])
def test_steps_are_the_emulators_to_the_bit(
    weights: str, form: CacheFormat, tmp_path: Path
) -> None:
    bundle = tiny(tmp_path, weights)
    tokens = [3, 1, 4, 1, 5]
    plain = program.emulated(bundle, TARGET)
    wanted = steps(plain, KVCache(bundle.graph.caches, 64, form), tokens)
    made = phones_program(bundle, contexts=2)
    np.testing.assert_array_equal(
        steps(made, KVCache(bundle.graph.caches, 64, form), tokens), wanted
    )
    plain.device.close()
    made.device.close()


def test_a_trained_model_tells_the_cpus_story(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(stories, tmp_path / "stories.lutra", weights="w4g32")
    bundle = Bundle.open(tmp_path / "stories.lutra")
    library, skels = phone.phone(1, formats_of(bundle))
    monkeypatch.setattr(fastrpc, "load", lambda: library)
    made = program.on_phone(bundle, TARGET, skels, None)
    models = edge.load(bundle.folder), Model(bundle, made, bundle.graph.context, "f16", "")
    texts = [
        model.generate("Once upon a time", max_tokens=40, sampling=Sampling.greedy())
        for model in models
    ]
    assert len(texts[0]) > 80
    assert texts[1] == texts[0]
    made.device.close()


def test_the_best_token_is_that_of_the_logits(tmp_path: Path) -> None:
    bundle = tiny(tmp_path, "w4g64")
    made = phones_program(bundle, contexts=2)
    cache = KVCache(bundle.graph.caches, 64, "f16")
    for token in (1, 2, 3):
        tokens = np.array([token], np.int32)
        logits = made.run(tokens, 1, cache, 1)[0]
        cache.rewind(cache.length - 1)
        assert made.best(tokens, 1, cache) == (int(np.argmax(logits)), float(logits.max()))
    made.device.close()


def test_what_another_target_put_into_the_cache_is_seen(tmp_path: Path) -> None:
    """Before, between and, where positions were forgotten, instead of what the device has."""
    bundle = tiny(tmp_path, "w4g64")
    reference = edge.load(bundle.folder, target="ref").program
    made = phones_program(bundle)
    caches = [KVCache(bundle.graph.caches, 64, "f16") for _ in range(2)]

    def step(token: int, by: tuple[Program, Program]) -> list[np.ndarray]:
        rows = []
        for cache, runs in zip(caches, by, strict=True):
            rows.append(runs.run(np.array([token], np.int32), 1, cache, 1)[0])
        return rows

    for token, mine in ((1, False), (2, True), (3, False), (4, True)):
        plain, tried = step(token, (reference, made if mine else reference))
        np.testing.assert_allclose(tried, plain, rtol=0, atol=0.02 * np.abs(plain).max())
    for cache in caches:
        cache.rewind(1)
    for token, mine in ((7, False), (8, False), (9, False), (5, True)):
        plain, tried = step(token, (reference, made if mine else reference))
        np.testing.assert_allclose(tried, plain, rtol=0, atol=0.02 * np.abs(plain).max())
    made.device.close()


def test_a_skel_without_the_bundles_formats_is_refused_by_name(tmp_path: Path) -> None:
    bundle = tiny(tmp_path, "w4g128")
    session = phone.opened(1, ("ternary",))
    made = HvxProgram(bundle, TARGET, PhoneDevice(session), 1)
    cache = KVCache(bundle.graph.caches, 8, "f16")
    with pytest.raises(CallRefused, match=r"kernel embedding_w4g128: .*no kernel of this name"):
        steps(made, cache, [1])
    made.device.close()


def test_more_memory_than_the_driver_gives_is_refused(tmp_path: Path, monkeypatch) -> None:
    bundle = tiny(tmp_path, "w4g64")
    monkeypatch.setattr(phones, "_MOST_BYTES", 4096)
    with phone.opened() as session, pytest.raises(CallRefused, match="the NPU's driver gives up"):
        HvxProgram(bundle, TARGET, PhoneDevice(session), 1)


def test_addresses_are_places_in_buffers() -> None:
    device = PhoneDevice(phone.opened())
    small = device.allocate(100)
    large = device.allocate(9 << 20)
    assert small % 128 == large % 128 == 0
    values = np.arange(25, dtype=np.int32)
    device.write(small + 128 * 0, values)
    np.testing.assert_array_equal(device.read(small, np.int32, (25,)), values)
    places = device.places(np.array([0, small, small + 4, large, large + 40]))
    references, offsets = places & 0xFFFFFFFF, places >> 32
    assert places[0] == 0
    assert references[1] == references[2] != references[3] == references[4]
    assert offsets[2] - offsets[1] == 4
    assert offsets[4] - offsets[3] == 40
    device.close()
