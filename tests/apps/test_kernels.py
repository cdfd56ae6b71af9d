"""`lutra kernels`: what it prints, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apps.cli import main

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


def test_an_unknown_instruction_set_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "--isa", "z80", "--no-cycles"]) == 2
    assert "use one of arm-neon" in capsys.readouterr().err
