"""Whole layers in Qualcomm's emulation, and the binary for a phone that has their weights once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edge
from converter.samples import Wanted
from converter.synth import synthesize
from edge.bundle import Bundle
from edge.errors import MissingDependency, NpuCrashed, NpuUnavailable
from edge.npu import Binary, NpuRecord
from edge.target import Target
from npu.htp.backend import _choose
from npu.htp.check import check
from npu.htp.context import read_header
from npu.htp.guard import run_child
from npu.htp.provider import load_qnn
from tests.golden.variants import VARIANTS, token_ids
from tests.npu.htp.conftest import MakeBundle
from tests.npu.htp.measure import divergence

HTP = Target.parse("npu:htp-v75")

# One layer of 786,432 weights: 393 KB at 4 bits.
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_attention_heads": 8,
    "num_hidden_layers": 1,
    "num_key_value_heads": 4,
}
WEIGHT_BYTES = 786_432 // 2


@pytest.fixture(scope="module")
def phone(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one layer for a SoC, and for the stand-in."""
    try:
        load_qnn()
    except (MissingDependency, NpuUnavailable) as error:
        pytest.skip(f"no HTP emulation here: {error}")
    source = tmp_path_factory.mktemp("one") / "source"
    synthesize(VARIANTS["llama"].config | SIZES, source, seed=0, dtype="f32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("converter.npu.WANTED", Wanted(count=64, length=64))
        return make_bundle("one", "SM8650", "npu:ort", checkpoint=source, form="layers")


def record(bundle: Path) -> NpuRecord:
    found = Bundle.open(bundle).manifest.npu
    assert found is not None
    return found


def test_prompts_and_decoding_are_emulated(phone: Path) -> None:
    exact = edge.load(phone, target="ref").logits(token_ids())
    model = edge.load(phone, prefill=str(HTP), decode=str(HTP))
    made = model.logits(token_ids())
    assert divergence(exact, made) < 0.1
    stand_in = edge.load(phone, prefill="npu:ort", decode="npu:ort")
    assert divergence(stand_in.logits(token_ids()), made) < 0.01
    assert model.place.count("npu:htp-v75 (Qualcomm's emulation)") == 2
    assert model.prefill_emulated
    assert model.decode_emulated
    cache = model.session().cache
    cache.reserve(24)
    alone = [model.program.run(t[None], 1, cache, 1) for t in token_ids()[:6].astype(np.int32)]
    assert divergence(made[:6], np.concatenate(alone)) < 0.002


def test_every_graph_is_as_its_twin(phone: Path) -> None:
    found = list(check(Bundle.open(phone), HTP))
    assert len(found) == 2 * 3
    assert all(one.passed for one in found)


def sizes(binaries: list[Binary], bundle: Path) -> int:
    names = {str(binary.context) for binary in binaries}
    return sum((bundle / name).stat().st_size for name in names)


def test_one_binary_has_the_weights_once(phone: Path) -> None:
    binaries = [b for b in record(phone).binaries if b.target == HTP]
    shared = [b for b in binaries if b.shared]
    apart = [b for b in binaries if not b.shared]
    names = ["layers.0.prefill", "layers.0.decode"]
    assert [b.piece for b in shared] == [b.piece for b in apart] == names
    assert len({b.context for b in apart}) == 2
    (context,) = {str(b.context) for b in shared}
    assert read_header(phone / context) == (57, 75)
    assert sizes(shared, phone) < sizes(apart, phone) - 0.9 * WEIGHT_BYTES


def test_a_phone_takes_the_shared_binary(phone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, npu = Bundle.open(phone), record(phone)
    assert not any(binary.shared for binary in _choose(bundle, npu, HTP).values())
    monkeypatch.setattr("npu.htp.backend.emulated", lambda: False)
    monkeypatch.setattr("npu.htp.backend.this_soc", lambda: "SM8650")
    assert all(binary.shared for binary in _choose(bundle, npu, HTP).values())


def test_the_emulation_ends_on_a_shared_binary(phone: Path) -> None:
    """Why it is given others. Should this fail, a newer one can load it: give it that."""
    shared = [b for b in record(phone).binaries if b.shared]
    items = [{"name": b.piece, "path": str(phone / b.path)} for b in shared]
    with pytest.raises(NpuCrashed, match=r"layers\.0\.prefill: .* died with SIGSEGV"):
        run_child({"verb": "load", "shared": True, "items": items}, lambda _: None)
