"""`lutra verify --on arm64`: a bundle's kernels in emulation, each beside the reference."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from apps import verify
from apps.cli import main
from converter.convert import convert
from cpu import check, emulated
from edge.bundle import Bundle
from edge.errors import MissingDependency
from edge.graph import Linear
from edge.planes import StoredTensor
from edge.target import Target
from tests.checkpoints import make_checkpoint

ALTERED = "layers.1.down"
TARGET = "cpu:aarch64,i8mm"


@pytest.fixture
def needs_emulator() -> None:
    try:
        emulated.require()
    except MissingDependency as missing:
        pytest.skip(str(missing))


def make_bundle(folder: Path, weights: str) -> Path:
    convert(make_checkpoint(folder / "tiny"), folder / "tiny.lutra", weights=weights)
    return folder / "tiny.lutra"


@pytest.mark.usefixtures("needs_emulator")
@pytest.mark.parametrize("weights", ["w2g32a", "ternary", "f16"])
def test_every_op_is_its_twin(weights: str, tmp_path: Path) -> None:
    bundle = Bundle.open(make_bundle(tmp_path, weights))
    found = list(check.check(bundle, Target.parse(TARGET)))
    assert [one for one in found if not one.passed] == []
    matrices = {op.weight for op in bundle.graph.ops() if isinstance(op, Linear)}
    assert matrices <= {one.subject for one in found}


stored = Bundle.tensor


def altered(bundle: Bundle, name: str) -> StoredTensor:
    """The tensor, with the highest bit of one code turned over where it is the one to alter."""
    made = stored(bundle, name)
    if name != ALTERED:
        return made
    planes = np.array(made.parts["planes"])
    planes[0, 0, -1, 0] ^= 1
    return StoredTensor(made.name, made.form, made.shape, {**made.parts, "planes": planes})


@pytest.mark.usefixtures("needs_emulator")
def test_a_bit_of_a_weight_is_seen_and_its_tensor_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify, "_ARM64", (TARGET,))
    path = make_bundle(tmp_path, "w4g64")
    assert main(["verify", str(path), "--on", "arm64"]) == 0
    with patch.object(Bundle, "tensor", altered):
        assert main(["verify", str(path), "--on", "arm64"]) == 1
    said = capsys.readouterr().out
    for kernel in ("linear_w4g64", "batch_w4g64"):
        assert f"{Target.parse(TARGET)} {kernel}: {ALTERED}: relative error" in said
    assert "arm64, emulated: " in said
    assert "2 are not as the twin" in said


def test_without_an_emulator_the_cure_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(emulated, "QEMU", "no-such-emulator")
    path = make_bundle(tmp_path, "w4g64")
    assert main(["verify", str(path), "--on", "arm64"]) == MissingDependency.exit_code
    assert "to do: " in capsys.readouterr().err
