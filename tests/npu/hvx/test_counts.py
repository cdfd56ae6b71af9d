"""Counts of whole calls: what the emulator ran is at least what the loops are, and docs say it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge.formats import Format
from npu.hvx import counts, inner, packets
from npu.hvx.contracts import families
from npu.hvx.isa import EMULATED
from tests.npu.hvx.harness import require_emulator

PAGE = Path(__file__).resolve().parents[3] / "docs" / "hexagon.md"
FORMS = [Format.parse(text) for text in ("w2g64a", "w3g64", "w8gc", "f16")]


@pytest.fixture(scope="module")
def counted() -> list[counts.Run]:
    require_emulator()
    return list(counts.counted(FORMS))


@pytest.fixture(scope="module")
def runs(counted: list[counts.Run]) -> dict[str, counts.Run]:
    return {run.kernel: run for run in counted}


@pytest.mark.parametrize("text", ["w2g64a", "w3g64"])
def test_a_call_is_its_loops_and_little_more(runs: dict[str, counts.Run], text: str) -> None:
    form = Format.parse(text)
    run, turn = runs[f"lookup_{text}"], packets.count(form, EMULATED)
    turns = run.items // (packets.TILE * packets.BLOCK)
    assert run.lookups == turns * turn.lookups
    assert 1 < run.packets / (turns * turn.packets) < 1.6
    assert run.packets < run.instructions < 4 * run.packets


def test_kernels_of_tables_take_vectors(runs: dict[str, counts.Run]) -> None:
    """Packets a value; a value at a time takes one at least."""
    for name, most in {"hvx_quantize": 0.65, "hvx_tables": 0.25, "hvx_split": 0.09}.items():
        assert runs[name].items == 2560
        assert runs[name].packets < most * 2560, name


def test_bytes_are_multiplied_two_vectors_a_packet(runs: dict[str, counts.Run]) -> None:
    """8 packets for 1,024 weights would be all that the multipliers need."""
    run = runs["lookup_w8gc"]
    assert run.lookups == 0
    assert run.per_1024(run.packets) < 13.5


def test_every_kernel_of_every_family_is_counted(counted: list[counts.Run]) -> None:
    wanted = [each.kernel.name for family in families(FORMS) for each in family]
    assert [run.kernel for run in counted] == wanted
    assert all(0 < run.packets <= run.instructions for run in counted)


def test_two_lookups_for_a_nibble_make_tiles(runs: dict[str, counts.Run]) -> None:
    for text in ("w2g64a", "w3g64"):
        assert runs[f"dequantize_{text}_int8"].lookups == runs[f"lookup_{text}"].lookups


def test_the_page_has_these_counts(counted: list[counts.Run]) -> None:
    """Of this room's kernels, but for scheduled loops, of which `test_packets` says what it does
    for the page; those of `cpu.kernels` change with the CPU's.
    """
    lines = PAGE.read_text(encoding="utf-8").partition("## Whole calls")[2].splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}
    loops = {f"lookup_{form}" for form in FORMS if inner.covers(form)}
    ours = [run for run in counted if run.kernel.startswith(("hvx_", "lookup_", "dequantize_"))]
    for run in (run for run in ours if run.kernel not in loops):
        figures = f"{run.per_1024(run.packets):.2f} / {run.per_1024(run.instructions):.2f}"
        assert figures in rows[run.form or run.kernel], run.kernel


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    require_emulator()
    assert counts.main(["--json", "w4gc"]) == 0
    made = json.loads(capsys.readouterr().out)
    names = ["embedding_w4gc", "lookup_w4gc", "dequantize_w4gc_int8", "dequantize_w4gc_f16"]
    assert [row["kernel"] for row in made if row["form"]] == names


def test_an_unknown_format_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert counts.main(["w5g64"]) != 0
    assert "w5g64" in capsys.readouterr().err
