"""Counts of whole calls: what the emulator ran is at least what the loops are."""

from __future__ import annotations

import json

import pytest

from edge.formats import Format
from npu.hvx import counts, packets
from npu.hvx.isa import EMULATED
from tests.npu.hvx.harness import require_emulator


@pytest.fixture(scope="module")
def runs() -> dict[str, counts.Run]:
    require_emulator()
    forms = [Format.parse("w2g64a"), Format.parse("w3g64"), Format.parse("w8gc")]
    return {run.kernel: run for run in counts.counted(forms)}


@pytest.mark.parametrize("text", ["w2g64a", "w3g64"])
def test_a_call_is_its_loops_and_little_more(runs: dict[str, counts.Run], text: str) -> None:
    form = Format.parse(text)
    run, turn = runs[f"lookup_{text}"], packets.count(form, EMULATED)
    turns = run.items // (packets.TILE * packets.BLOCK)
    assert run.lookups == turns * turn.lookups
    assert 1 < run.packets / (turns * turn.packets) < 1.6
    assert run.packets < run.instructions < 4 * run.packets


def test_kernels_of_tables_are_counted_by_value(runs: dict[str, counts.Run]) -> None:
    assert runs["hvx_quantize"].per_1024(runs["hvx_quantize"].packets) < 5 * 1024
    assert runs["hvx_tables"].items == runs["hvx_split"].items == 2560
    assert runs["lookup_w8gc"].lookups == 0


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    require_emulator()
    assert counts.main(["--json", "w4gc"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert [row["kernel"] for row in made][-1] == "lookup_w4gc"


def test_an_unknown_format_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert counts.main(["w5g64"]) != 0
    assert "w5g64" in capsys.readouterr().err
