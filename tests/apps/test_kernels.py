"""`lutra kernels`: what it prints, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apps.cli import main
from cpu.codegen import mca
from cpu.codegen.mca import Tool
from cpu.report import CORES

ASKED = ("kernels", "--isa", "arm-dotprod", "--weights", "w4g64")


def test_loops_as_json_without_llvm_mca(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert main([*ASKED, "--no-cycles", "--json", "--quiet"]) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert made["figures"] == "modelled"
    linear = made["kernels"][0]
    assert linear["kernel"] == "linear w4g64"
    assert len(linear["loop"]) == linear["instructions_per_turn"]
    assert linear["cycles_per_64"] == {}
    assert main([*ASKED, "--json"]) == 3
    assert "--no-cycles" in capsys.readouterr().err


def test_a_page_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "kernels.md"
    assert main([*ASKED, "--no-cycles", "--out", str(out), "--quiet"]) == 0
    page = out.read_text()
    assert "## arm-dotprod" in page
    assert "| linear w4g64 |" in page
    assert capsys.readouterr().out == ""


def test_what_decode_on_a_phone_waits_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tool, "cycles", lambda *_: 100.0)
    monkeypatch.setattr(mca, "find_tool", lambda: Tool("llvm-mca", "0"))
    assert main([*ASKED, "--json", "--quiet", "--clock-ghz", "2", "--core-gb-s", "1"]) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert made["phone"]["clock_ghz"] == 2.0
    assert [row["core"] for row in made["decode"]] == list(CORES["arm-dotprod"])
    for row in made["decode"]:
        assert (row["kernel"], row["bytes_per_64"]) == ("linear w4g64", 34)
        assert row["cycles_computing"] < 68 == 34 * 2 / 1
        assert row["waits_for"] == {"1": "memory", "4": "memory"}
    assert main([*ASKED, "--quiet", "--core-gb-s", "1e4", "--memory-gb-s", "1e4"]) == 0
    assert "computing         computing" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("--cores", "0"), ("--clock-ghz", "nan")])
def test_a_phone_has_cores_and_a_clock(
    words: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kernels", *words]) == 2
    assert "need numbers above 0" in capsys.readouterr().err


def test_an_unknown_instruction_set_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "--isa", "z80", "--no-cycles"]) == 2
    assert "use one of arm-neon" in capsys.readouterr().err
