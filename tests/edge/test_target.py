from __future__ import annotations

from pathlib import Path

import pytest

from edge import target as targets
from edge.errors import UnknownTarget
from edge.target import Machine, Target, this_machine

SPELLINGS = {
    "ref": "ref",
    "cpu:x86_64": "cpu:x86_64",
    "cpu:x86_64,avx512,vnni,amx": "cpu:x86_64,avx2,avx512,vnni,amx",
    "cpu:x86_64,amx": "cpu:x86_64,avx2,avx512,vnni,amx",
    "cpu:aarch64-android,i8mm": "cpu:aarch64-android,dotprod,i8mm",
    "cpu:aarch64": "cpu:aarch64",
    "npu:htp-v75": "npu:htp-v75",
    "npu:hvx-v73": "npu:hvx-v73",
    "npu:ort": "npu:ort",
}


@pytest.mark.parametrize(("text", "full"), SPELLINGS.items())
def test_prints_with_what_it_implies_and_reads_that_back(text: str, full: str) -> None:
    target = Target.parse(text)
    assert str(target) == full
    assert Target.parse(full) == target


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("gpu", "gpu"),
        ("cpu:riscv64", "riscv64"),
        ("cpu:x86_64,neon", "neon"),
        ("npu:htp", "npu:htp"),
        ("cpu:x86_64-windows", "windows"),
        ("npu:tpu-v1", "tpu"),
        ("", "''"),
        ("cpu:", "cpu:"),
        ("cpu:aarch64,avx2", "avx2"),
    ],
)
def test_misspelled_targets_are_refused(text: str, named: str) -> None:
    with pytest.raises(UnknownTarget, match=named) as error:
        Target.parse(text)
    assert "cpu:x86_64" in error.value.cure


def test_units_name_the_backend() -> None:
    units = [Target.parse(t).unit for t in ("ref", "cpu:x86_64", "npu:htp-v75", "npu:hvx-v73")]
    assert units == ["ref", "cpu", "npu:htp", "npu:hvx"]


X86 = Machine("x86_64", "linux", frozenset({"avx2", "avx512", "vnni"}))
PHONE = Machine("aarch64", "android", frozenset({"neon", "dotprod"}))
BOARD = Machine("aarch64", "linux", frozenset({"neon", "dotprod", "i8mm"}))


@pytest.mark.parametrize(
    ("machine", "text", "reason"),
    [
        (X86, "cpu:x86_64,vnni", ""),
        (X86, "cpu:x86_64,amx", "needs amx"),
        (X86, "cpu:aarch64", "is for aarch64"),
        (PHONE, "cpu:aarch64-android,dotprod", ""),
        (PHONE, "cpu:aarch64-android,i8mm", "needs i8mm"),
        (PHONE, "cpu:aarch64,dotprod", "is for Linux"),
        (BOARD, "cpu:aarch64-android,i8mm", ""),
    ],
)
def test_matching_says_what_is_missing(machine: Machine, text: str, reason: str) -> None:
    found = machine.mismatch(Target.parse(text))
    assert (reason in found) if reason else found == ""


def test_a_machine_runs_its_own_target() -> None:
    for machine in (X86, PHONE, BOARD):
        assert machine.mismatch(machine.target()) == ""
    with pytest.raises(UnknownTarget, match="riscv64"):
        Machine("riscv64", "linux", frozenset()).target()


def test_features_come_from_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor: 0\nflags : fpu avx2 fma f16c avx512f avx512bw avx512vl avx512dq amx_tile\n"
    )
    monkeypatch.setattr(targets.platform, "machine", lambda: "x86_64")
    assert this_machine(cpuinfo).features == {"avx2", "avx512"}
    second = "avx2 fma f16c avx512f avx512bw avx512vl avx512dq avx512_vnni"
    cpuinfo.write_text(f"flags : {second}\n")
    assert this_machine(cpuinfo).features == {"avx2", "avx512"}  # Cascade Lake: no GFNI
    cpuinfo.write_text(f"flags : {second} gfni avx512vbmi\n")
    assert this_machine(cpuinfo).features == {"avx2", "avx512", "vnni"}
    cpuinfo.write_text("Features : fp asimd asimddp i8mm\n")
    monkeypatch.setattr(targets.platform, "machine", lambda: "arm64")
    assert this_machine(cpuinfo).features == {"neon", "dotprod", "i8mm"}


def test_a_feature_without_what_it_implies_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags : avx512f avx512bw avx512vl avx512dq avx512_vnni\n")
    monkeypatch.setattr(targets.platform, "machine", lambda: "x86_64")
    assert this_machine(cpuinfo).features == frozenset()
    assert this_machine(tmp_path / "none").features == frozenset()


def test_an_odd_or_unreadable_cpuinfo_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets.platform, "machine", lambda: "aarch64")
    assert this_machine(tmp_path).features == {"neon"}  # a folder exists, and cannot be read
    (tmp_path / "cpuinfo").write_bytes(b"Hardware : \xff\xfe\nFeatures : asimd asimddp\n")
    assert this_machine(tmp_path / "cpuinfo").features == {"neon", "dotprod"}
