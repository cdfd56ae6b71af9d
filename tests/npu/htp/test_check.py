"""`lutra verify --on htp`: compiled graphs in emulation, beside what they were compiled from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from apps.cli import main
from edge.bundle import Bundle
from edge.errors import MissingDependency, NpuUnavailable
from npu.htp import check, provider
from npu.htp.backend import STAND_IN, sessions
from npu.htp.provider import cpu_session, load_qnn
from tests.npu.htp.conftest import MakeBundle

PIECE, TENSOR = "layers.1.qkv", "layers.1.k"


@pytest.fixture(scope="module")
def both(make_bundle: MakeBundle) -> Path:
    """A bundle with compiled graphs, and those before."""
    try:
        load_qnn()
    except (MissingDependency, NpuUnavailable) as error:
        pytest.skip(f"no HTP emulation here: {error}")
    return make_bundle("llama", "SM8650", "npu:ort")


def test_every_graph_is_its_twin(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(both), "--on", "htp", "--json"]) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    bundle = Bundle.open(both)
    assert values["figures"] == "emulated"
    assert len(values["kernels"]) == check.output_count(bundle)
    assert TENSOR in {use["subject"] for use in values["kernels"]}


def with_other_weights(path: Path, out: Path) -> Path:
    """The graph with the weights of one tensor rolled by a row."""
    model = onnx.load(path)
    weight = next(c for c in model.graph.initializer if c.name == f"weights/{TENSOR}")
    codes = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.roll(codes, 1, axis=0), weight.name))
    onnx.save(model, out)
    return out


def test_other_weights_are_seen_and_their_tensor_named(
    both: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def altered(bundle: Bundle, target: Any) -> dict[str, Any]:
        made = sessions(bundle, target)
        if target == STAND_IN:
            other = with_other_weights(both / "npu/ort" / f"{PIECE}.onnx", tmp_path / "b.onnx")
            made[PIECE] = cpu_session(other)
        return made

    monkeypatch.setattr(check, "sessions", altered)
    assert main(["verify", str(both), "--on", "htp"]) == 1
    said = capsys.readouterr().out
    assert f"npu:htp-v75 {PIECE}: {TENSOR}: relative error" in said
    assert "1 are not as the twin" in said


def test_a_bundle_without_its_graphs_is_refused(make_bundle: MakeBundle) -> None:
    with pytest.raises(NpuUnavailable, match="--npu SM8650,npu:ort"):
        check.targets(Bundle.open(make_bundle("llama", "npu:ort")))


def test_without_the_emulation_the_cure_is_named(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> Callable[..., Any]:
        raise MissingDependency("the HTP needs onnxruntime-qnn", 'pip install "lutra[npu]"')

    monkeypatch.setattr(provider, "load_qnn", missing)
    bundle = make_bundle("llama", "npu:ort")
    assert main(["verify", str(bundle), "--on", "htp"]) == MissingDependency.exit_code
    assert 'pip install "lutra[npu]"' in capsys.readouterr().err
