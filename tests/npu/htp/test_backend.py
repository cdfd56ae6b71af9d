"""The emulated HTP, end to end, and what can be wrong with its files: one clear error each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge
from converter.npu import plan_npu
from cpu.codegen.cache import NotCached
from edge.bundle import Bundle
from edge.errors import (
    AlteredBundle,
    LutraError,
    MissingDependency,
    NpuCrashed,
    NpuRefused,
    NpuUnavailable,
    TruncatedBundle,
    UnknownTarget,
    UsageError,
)
from edge.manifest import _digest
from npu.htp.context import check_header, read_header
from npu.htp.guard import run_child
from npu.htp.provider import load_qnn
from tests.golden.variants import token_ids
from tests.npu.htp.conftest import MakeBundle
from tests.npu.htp.measure import divergence


@pytest.fixture(scope="module")
def phone(make_bundle: MakeBundle) -> Path:
    """A bundle for two SoCs, and for the stand-in."""
    try:
        load_qnn()
    except (MissingDependency, NpuUnavailable) as error:
        pytest.skip(f"no HTP emulation here: {error}")
    return make_bundle("llama", "SM8650", "SM8550", "npu:ort")


@pytest.fixture
def copy(phone: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phone, tmp_path / "copy.lutra"))


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest, and make its digest right again."""
    path = bundle / "manifest.json"
    body = json.loads(path.read_text())
    del body["digest"]
    change(body)
    path.write_text(json.dumps(body | {"digest": _digest(body)}))


def load(bundle: Path, target: str = "npu:htp-v75") -> edge.Model:
    return edge.load(bundle, prefill=target, decode="ref")


def test_emulation_agrees_with_the_stand_in_and_goes_on_in_text(phone: Path) -> None:
    emulated, stand_in = load(phone), load(phone, "npu:ort")
    exact = edge.load(phone, target="ref").logits(token_ids())
    made = emulated.logits(token_ids())
    assert divergence(exact, made) < 0.02
    assert divergence(stand_in.logits(token_ids()), made) < 0.003
    assert "npu:htp-v75 (Qualcomm's emulation)" in emulated.place
    assert emulated.prefill_emulated
    assert list(emulated.stream(token_ids()[:5], max_tokens=2, sampling=edge.Sampling.greedy()))


def test_one_bundle_has_binaries_of_two_socs(phone: Path) -> None:
    record = Bundle.open(phone).manifest.npu
    assert record is not None
    found = {b.soc: read_header(phone / str(b.context)) for b in record.binaries if b.context}
    assert found == {"SM8650": (57, 75), "SM8550": (43, 73)}
    assert len([b for b in record.binaries if b.soc == "SM8650"]) == 4 * 3  # the gate is apart
    assert set(record.tools) == {"onnx", "onnxruntime", "onnxruntime-qnn"}


@pytest.mark.parametrize("mode", ["w8a16", "w4a16"])
def test_other_modes_compile_to_integers(mode: str, phone: Path, make_bundle: MakeBundle) -> None:
    bundle = make_bundle("llama", "SM8650", mode=mode)
    exact = edge.load(bundle, target="ref").logits(token_ids())
    bound = {"w8a16": 0.003, "w4a16": 0.1}[mode]
    assert divergence(exact, load(bundle).logits(token_ids())) < bound


def test_a_header_of_another_soc_is_told(phone: Path) -> None:
    path = next((phone / "npu" / "htp-v75" / "SM8650").glob("*.bin"))
    check_header(path, 57, 75)
    with pytest.raises(NpuRefused, match="made for SoC 57, HTP v75; need SoC 43, HTP v73"):
        check_header(path, 43, 73)


def test_a_file_that_is_no_binary_is_told(tmp_path: Path) -> None:
    for content in (b"", b"x" * 100, b"\xff" * 4000):
        (tmp_path / "a.bin").write_bytes(content)
        with pytest.raises(NpuRefused, match=r"a\.bin: no context binary"):
            read_header(tmp_path / "a.bin")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_broken_files_are_named(copy: Path, phone: Path) -> None:
    name = "layers.1.qkv_qnn.bin"
    path = copy / "npu" / "htp-v75" / "SM8650" / name
    cases: list[tuple[Callable[[], object], type[LutraError]]] = [
        (lambda: flip(path), AlteredBundle),
        (lambda: path.write_bytes(path.read_bytes()[:-100]), TruncatedBundle),
        (path.unlink, TruncatedBundle),
    ]
    for damage, error in cases:
        shutil.copy(phone / path.relative_to(copy), path)
        damage()
        with pytest.raises(error, match=name):
            load(copy)


def test_a_target_that_the_bundle_lacks(phone: Path, make_bundle: MakeBundle) -> None:
    with pytest.raises(NpuUnavailable, match=r"no program for npu:htp-v79.*SM8650"):
        load(phone, "npu:htp-v79")
    bare = make_bundle("qwen3", "npu:ort")
    with pytest.raises(NpuUnavailable, match="it has npu:ort"):
        load(bare)


def test_another_soc_is_refused_on_a_phone(phone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npu.htp.backend.emulated", lambda: False)
    monkeypatch.setattr("npu.htp.backend.this_soc", lambda: "SM8750")
    with pytest.raises(NpuUnavailable, match=r"this is SM8750.*--npu SM8750"):
        load(phone)


def test_a_shape_that_does_not_match(copy: Path) -> None:
    edit(copy, lambda body: body["npu"].update(rows=64))
    with pytest.raises(NpuRefused, match="does not fit the manifest"):
        load(copy)


def test_a_bundle_without_a_program(tmp_path: Path) -> None:
    from converter.convert import convert
    from tests.checkpoints import make_checkpoint

    convert(make_checkpoint(tmp_path / "tiny"), tmp_path / "tiny.lutra")
    with pytest.raises(NpuUnavailable, match="no NPU program; convert again with --npu"):
        load(tmp_path / "tiny.lutra", "npu:ort")


def test_a_missing_library(phone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime_qnn.get_qnn_htp_path", lambda: "/nowhere/libQnnHtp.so")
    with pytest.raises(NpuUnavailable, match="no NPU library at /nowhere"):
        load(phone)


def test_a_cache_that_cannot_be_written_is_done_without(
    phone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTRA_CACHE", "/proc/none")
    with pytest.warns(NotCached, match="/proc/none"):
        load(phone)


def test_a_child_that_dies_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a crash of the emulator looks like from outside."""
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho \'{"begun": "layers.3.qkv"}\'\nkill -SEGV $$\n')
    script.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(script))
    with pytest.raises(NpuCrashed, match=r"layers\.3\.qkv: .* died with SIGSEGV"):
        run_child({"verb": "load", "shared": False, "items": []}, lambda _: None)


@pytest.mark.parametrize(
    ("kind", "named"),
    [("Sinh", "does not take Sinh"), ("Relu", "float for SM8650: Relu works on float")],
)
def test_ops_that_it_refuses_or_runs_in_float_are_named(
    kind: str, named: str, phone: Path, tmp_path: Path
) -> None:
    """With the compiler's own reason, not the exception that it raises."""
    import onnx
    from onnx import TensorProto, helper

    from npu.htp.compile import compile_graphs
    from npu.htp.socs import find_soc

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 4]) for n in ("x", "y"))
    graph = helper.make_graph([helper.make_node(kind, ["x"], ["y"], "node")], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path, out = tmp_path / "float.onnx", tmp_path / "out"
    onnx.save(model, str(path))
    with pytest.raises(NpuRefused, match=named):
        compile_graphs(
            {"float": path}, find_soc("SM8650"), out, lambda _: None, block_weights=False
        )


@pytest.mark.parametrize(
    ("names", "settings", "error", "named"),
    [
        (["SM9999"], {}, UnknownTarget, "SM9999"),
        (["npu:ort"], {"rows": 100}, UsageError, "--chunk 100"),
        (["npu:ort"], {"pruned": 1.5}, UsageError, "--prune-outliers 1.5"),
        (["npu:ort"], {"text": Path("no.txt")}, UsageError, "no.txt"),
        ([], {"mode": "w4a16"}, UsageError, "no NPU"),
        ([], {"smoothing": 0.5}, UsageError, "no NPU"),
    ],
)
def test_plans_that_make_no_sense(
    names: list[str], settings: dict[str, Any], error: type[LutraError], named: str
) -> None:
    rows = settings.pop("rows", 32)
    with pytest.raises(error, match=named):
        plan_npu(names, rows, **settings)
    assert plan_npu([], rows) is None


def test_codes_of_emulation_are_off_by_few(phone: Path) -> None:
    """The emulation rounds its own way: codes differ by a step or two, from exact integer sums."""
    emulated, stand_in = load(phone).program, load(phone, "npu:ort").program
    random = np.random.default_rng(0)
    for name in ("layers.0.output", "layers.1.feed_forward"):
        sessions = [p.prompt._sessions[name] for p in (emulated, stand_in)]  # type: ignore[union-attr]
        first = sessions[0].get_inputs()[0]
        codes = random.integers(0, 256, first.shape).astype(np.uint8)
        one, other = (s.run(None, {first.name: codes})[0].astype(int) for s in sessions)
        assert np.abs(one - other).max() <= 1
        assert (one == other).mean() > 0.9
