"""Bundles with code compiled ahead: what a device without a compiler runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edge
from converter.convert import convert
from edge.bundle import Bundle, verify
from edge.errors import AlteredBundle, TruncatedBundle, UnknownTarget, WrongSchema
from edge.target import Target, this_machine
from tests.checkpoints import make_checkpoint

BASE = {"x86_64": "cpu:x86_64,avx2", "aarch64": "cpu:aarch64-android"}
FOREIGN = {"x86_64": "cpu:aarch64-android,dotprod", "aarch64": "cpu:x86_64,avx2"}

ARCH = this_machine().arch
pytestmark = pytest.mark.skipif(ARCH not in BASE, reason=f"no code generator for {ARCH}")

GENERATE = """
import json, sys
if sys.argv[3:]:
    sys.modules["llvmlite"] = None
import edge
model = edge.load(sys.argv[1], target=sys.argv[2], cache_format="f32")
records = model.stream([1, 2, 3], max_tokens=5, sampling=edge.Sampling.greedy())
tokens = [record.token for record in records]
print(json.dumps([str(model.program.target), tokens, sys.modules.get("llvmlite") is None]))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ahead")
    make_checkpoint(folder / "source")
    targets = [BASE[ARCH], FOREIGN[ARCH], BASE[ARCH]]  # one twice counts once
    convert(folder / "source", folder / "m.lutra", weights="w4g32", targets=targets)
    return folder / "m.lutra"


def test_the_manifest_lists_what_was_compiled_with_its_tools(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert [a.target for a in manifest.artifacts] == [
        Target.parse(BASE[ARCH]),
        Target.parse(FOREIGN[ARCH]),
    ]
    assert all(a.path in manifest.files and a.tools["llvmlite"] for a in manifest.artifacts)
    verify(Bundle.open(bundle))


@pytest.mark.parametrize("arguments", [["auto", "without"], [BASE.get(ARCH, "")]])
def test_the_fitting_code_runs_and_no_compiler_is_touched(
    bundle: Path, arguments: list[str]
) -> None:
    """Where there is none, and where there is one."""
    command = [sys.executable, "-c", GENERATE, str(bundle), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    target, tokens, untouched = json.loads(run.stdout)
    assert untouched
    assert target == str(Target.parse(BASE[ARCH]))
    greedy = edge.Sampling.greedy()
    expected = edge.load(bundle, target="ref").stream([1, 2, 3], max_tokens=5, sampling=greedy)
    assert tokens == [record.token for record in expected]


def test_code_of_another_version_is_not_called(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cpu.kernels.families.REVISION", 0)
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.lutra"))
    opened = edge.load(copy, target=BASE[ARCH])  # made anew
    assert opened.generate([1, 2, 3], max_tokens=1, sampling=edge.Sampling.greedy()) is not None
    monkeypatch.setattr("cpu.backend._has_compiler", lambda: False)
    with pytest.raises(WrongSchema, match=r"kernels\.so has another version's kernels: .* need"):
        edge.load(copy, target=BASE[ARCH])


def test_a_shortened_library_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.lutra"))
    path = copy / Bundle.open(copy).manifest.artifacts[0].path
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TruncatedBundle, match=r"kernels\.so"):
        edge.load(copy)


def test_altered_machine_code_does_not_run(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.lutra"))
    path = copy / Bundle.open(copy).manifest.artifacts[0].path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x41
    path.write_bytes(content)
    with pytest.raises(AlteredBundle, match=r"kernels\.so"):
        edge.load(copy, target=BASE[ARCH])


@pytest.mark.parametrize("target", ["cpu:z80", "npu:hvx-v60", "npu:htp-v75", "cpu:x86_64", "ref"])
def test_targets_that_cannot_be_compiled_for_are_refused_before_the_weights(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converter.convert._encode_all", lambda *_: pytest.fail("weights begun"))
    make_checkpoint(tmp_path / "source")
    with pytest.raises(UnknownTarget):
        convert(tmp_path / "source", tmp_path / "m.lutra", targets=[target])
    assert not (tmp_path / "m.lutra").exists()
