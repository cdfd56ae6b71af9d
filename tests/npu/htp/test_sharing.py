"""The figures of chunk-sharing."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.bench.sharing import main, measure, memory_bytes
from edge.bundle import Bundle
from edge.target import Target
from tests.npu.htp.conftest import MakeBundle


def test_graphs_and_bytes_are_counted(
    make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_bundle("llama", "npu:ort")
    made = measure(Bundle.open(path), Target.parse("npu:ort"), 4)
    assert (made.graphs, made.graphs_apart) == (3 * 4, 4 * 3 * 4)  # the gate is the CPU's
    stored = sum(p.stat().st_size for p in (path / "npu" / "ort").iterdir())
    assert (made.file_bytes, made.file_bytes_apart) == (stored, 4 * stored)
    assert main([str(path), "--chunks", "2"]) == 0
    assert "measured" in capsys.readouterr().out


def test_a_bundle_without_a_program_is_told(tmp_path: Path) -> None:
    assert main([str(tmp_path / "none")]) == 30


def test_memory_is_read(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name: x\nVmRSS:   12 kB\n")
    assert memory_bytes(tmp_path / "status") == 12 * 1024
