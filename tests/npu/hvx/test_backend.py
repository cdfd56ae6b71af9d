"""Skel libraries in bundles: made by the conversion, found, and refused where not right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import edge
from apps.cli import main
from converter.convert import convert
from edge.bundle import Bundle
from edge.errors import AlteredBundle, NpuUnavailable, TruncatedBundle, UnknownTarget
from edge.target import Target
from npu.hvx import elf, fastrpc, program
from npu.hvx.backend import BACKEND
from npu.hvx.elf import file_name
from tests.checkpoints import make_checkpoint
from tests.npu.hvx import phone

TARGETS = ("npu:hvx-v73", "npu:hvx-v75")
V73 = Target.parse(TARGETS[0])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("ziglang", reason="Hexagon code is linked by it")
    folder = tmp_path_factory.mktemp("backend")
    bundle = folder / "tiny.lutra"
    convert(make_checkpoint(folder / "tiny"), bundle, weights="w4g64", targets=TARGETS)
    return bundle


@pytest.fixture
def copied(path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(path, tmp_path / "copied.lutra"))


def library(bundle: Path, version: int) -> Path:
    return bundle / "npu" / "hvx" / file_name(version)


def test_a_bundle_has_a_library_for_each_target(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [elf.version_of(library(path, version)) for version in (73, 75)] == [73, 75]
    assert main(["inspect", str(path), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out.splitlines()[-1])["artifacts"]
    wanted = [
        {"target": target, "path": f"npu/hvx/{file_name(int(target[-2:]))}"} for target in TARGETS
    ]
    assert listed == wanted
    made = Bundle.open(path).manifest
    assert {artifact.path for artifact in made.artifacts} <= set(made.files)
    assert set(made.artifacts[0].tools) == {"llvmlite", "ziglang"}


def test_what_is_emulated_is_not_compiled_ahead(tmp_path: Path) -> None:
    with pytest.raises(UnknownTarget, match=r"npu:hvx-v67: it is emulated"):
        BACKEND.compile([], Target.parse("npu:hvx-v67"), tmp_path)


def test_without_fastrpc_the_target_is_refused_by_name(path: Path) -> None:
    with pytest.raises(UnknownTarget, match=r"npu:hvx-v73 is a phone's: no FastRPC library lib"):
        edge.load(path, target="npu:hvx-v73")


def test_a_target_that_was_not_compiled_is_named(path: Path) -> None:
    with pytest.raises(NpuUnavailable, match="not compiled for npu:hvx-v79") as found:
        BACKEND.load(Bundle.open(path), Target.parse("npu:hvx-v79"))
    assert found.value.cure == "convert with --targets npu:hvx-v79"


def test_a_short_library_is_named(copied: Path) -> None:
    content = library(copied, 73).read_bytes()
    library(copied, 73).write_bytes(content[:-1000])
    with pytest.raises(TruncatedBundle, match=rf"v73_skel.so: {len(content) - 1000} bytes long"):
        Bundle.open(copied)


def test_a_library_of_another_version_is_named(copied: Path) -> None:
    """It is another file than the conversion made."""
    content = bytearray(library(copied, 73).read_bytes())
    content[36] = 0x75
    library(copied, 73).write_bytes(content)
    with pytest.raises(AlteredBundle, match=r"liblutra_v73_skel\.so"):
        BACKEND.load(Bundle.open(copied), V73)


def test_a_phone_that_is_too_old_for_the_target_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone.require_standin()
    library, skels = phone.phone()
    monkeypatch.setattr(fastrpc, "load", lambda: library)
    with pytest.raises(NpuUnavailable, match="no skel library for Hexagon v67 or below"):
        BACKEND.load(Bundle.open(path), V73)
    with pytest.raises(NpuUnavailable, match="this phone's NPU is Hexagon v67") as found:
        program.on_phone(Bundle.open(path), V73, skels, None)
    assert found.value.cure.startswith("use --decode npu:hvx-v67")
