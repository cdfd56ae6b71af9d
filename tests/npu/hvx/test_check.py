"""`lutra verify --on hvx`: a bundle's kernels in emulation, each beside its twin."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from apps.cli import main
from converter.convert import convert
from edge.bundle import Bundle
from edge.errors import MissingDependency
from edge.graph import Linear
from edge.planes import StoredTensor
from edge.target import Target
from npu.hvx import check, emulator
from tests.checkpoints import make_checkpoint
from tests.npu.hvx.harness import require_emulator

TARGET = Target.parse("npu:hvx-v67")
ALTERED = "layers.1.down"


def make_bundle(folder: Path, weights: str) -> Path:
    bundle = folder / "tiny.lutra"
    convert(make_checkpoint(folder / "tiny"), bundle, weights=weights)
    return bundle


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("check"), "w4g64")


@pytest.mark.parametrize("weights", ["w1g64", "w2g32a", "w8gc", "ternary", "f16"])
def test_every_op_is_its_twin(weights: str, tmp_path: Path) -> None:
    require_emulator()
    bundle = Bundle.open(make_bundle(tmp_path, weights))
    found = list(check.check(bundle, TARGET))
    assert [one for one in found if not one.passed] == []
    assert len(found) >= check.op_count(bundle)
    assert {one.kernel for one in found} >= {"argmax", "attention_f16", "norm", "rope"}
    matrices = {op.weight for op in bundle.graph.ops() if isinstance(op, Linear)}
    assert matrices <= {one.subject for one in found}


def altered(bundle: Bundle, name: str) -> StoredTensor:
    """The tensor, with one bit of one code turned over where it is the one to alter."""
    made = stored(bundle, name)
    if name != ALTERED:
        return made
    planes = np.array(made.parts["planes"])
    planes[0, 0, 0, 0] ^= 1
    return StoredTensor(made.name, made.form, made.shape, {**made.parts, "planes": planes})


stored = Bundle.tensor


def test_a_bit_of_a_weight_is_seen_and_its_tensor_named(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_emulator()
    with patch.object(Bundle, "tensor", altered):
        assert main(["verify", str(path), "--on", "hvx"]) == 1
    said = capsys.readouterr().out
    assert f"lookup_w4g64: {ALTERED}: 1 of 32 rows have another integer" in said
    assert "hvx, emulated: " in said
    assert f"dequantize_w4g64_int8: {ALTERED}: 1 values are others" in said
    assert "3 are not as the twin" in said


def test_json_has_every_use(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_emulator()
    assert main(["verify", str(path), "--on", "hvx", "--json"]) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["ok"] is True
    assert values["figures"] == "emulated"
    assert all(use["passed"] for use in values["kernels"])
    assert ALTERED in {use["subject"] for use in values["kernels"]}


def test_without_an_emulator_the_cure_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(emulator, "QEMU", "no-such-emulator")
    assert main(["verify", str(path), "--on", "hvx"]) == MissingDependency.exit_code
    said = capsys.readouterr().err
    assert "no no-such-emulator on the path" in said
    assert "to do: apt-get install qemu-user" in said
