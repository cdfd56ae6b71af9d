"""The page of kernels against what the compiler makes now, and cycles where llvm-mca is."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpu.codegen.emit import compiler_version
from cpu.codegen.isa import Isa
from cpu.codegen.mca import find_tool
from cpu.kernels.families import families
from cpu.report import CORES, FORMATS, UNIT, Row, find_row, isas, subjects
from edge.errors import LutraError, MissingDependency
from edge.formats import Format

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "kernels.md").read_text(encoding="utf-8")
ISAS = {isa.name: isa for isa in isas()}
every_isa = pytest.mark.parametrize("isa", ISAS.values(), ids=ISAS)


def documented(isa: str) -> dict[str, list[str]]:
    """The page's rows of an instruction set by kernel, without the head."""
    section = PAGE.split(f"\n## {isa}\n")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    return {cells[0]: cells[1:] for cells in lines[2:]}


def rows_of(isa: Isa, formats: tuple[str, ...]) -> list[Row]:
    return [find_row(isa, subject) for subject in subjects(isa, formats)]


def test_the_page_has_every_kernel_of_every_instruction_set() -> None:
    for isa in isas():
        assert list(documented(isa.name)) == [subject.name for subject in subjects(isa)]
        assert isa.name in CORES


@every_isa
def test_every_kernel_is_reported(isa: Isa) -> None:
    """But for those whose loop is that of another: of blocks of 64, of a whole row."""
    forms = [Format.parse(text) for text in (*FORMATS, "f16", "f32")]
    made = families(forms, matrix_unit=isa.tiles is not None, lookup_bits=isa.lookup_bits)
    left = {kernel.name for kernels in made.values() for kernel in kernels}
    left -= {subject.kernel.name for subject in subjects(isa)}
    blocks = {f"{name}_b{block}" for name in ("quantize", "norm_quantize") for block in (32, 128)}
    assert left == blocks | {f"quantize_sliced_b{block}" for block in (32, 64, 128)}


@every_isa
def test_the_page_counts_what_the_compiler_makes(isa: Isa) -> None:
    """All formats of one instruction set; of the others, whose kernels are the same, one."""
    if compiler_version() not in PAGE:
        pytest.skip(f"the page is of another compiler than {compiler_version()}")
    page = documented(isa.name)
    for row in rows_of(isa, FORMATS if isa.name == "arm-i8mm" else ("w4g64",)):
        made = [f"{row.work:g} {row.subject.what}", str(len(row.loop.instructions))]
        made.append(f"{row.instructions:.1f}")
        cure = "run `lutra kernels --out docs/kernels.md`"
        assert page[row.subject.name][:3] == made, f"{isa.name} {row.subject.name}: {cure}"


@every_isa
def test_each_format_is_decoded_by_one_kernel(isa: Isa) -> None:
    decoding = {s.name: s.read_bytes for s in subjects(isa) if s.read_bytes}
    assert sorted(name.split()[1] for name in decoding) == sorted(FORMATS)
    sizes = {name.split()[1]: size for name, size in decoding.items()}
    # 4 bits and a float16 for 64; a zero more; no scales to speak of
    assert (sizes["w4g64"], sizes["w4g64a"], sizes["ternary"]) == (34, 35, 16)


def row_of(isa: str, name: str) -> Row:
    found = [s for s in subjects(ISAS[isa], ["w4g64"]) if s.name == name]
    return find_row(ISAS[isa], found[0])


def test_a_loop_is_the_one_that_multiplies() -> None:
    row = row_of("arm-dotprod", "linear w4g64")
    counts = row.loop.mnemonics()
    assert counts["sdot"] * 16 == row.work * 2
    assert row.around is not None
    assert row.around.mnemonics()["scvtf"] == 16  # 64 outputs' sums become floats once a block


def test_cycles_are_those_of_the_page() -> None:
    try:
        tool = find_tool()
    except MissingDependency as error:
        pytest.skip(str(error))
    row = row_of("arm-dotprod", "linear w4g64")
    cycles = row.cycles(tool, "cortex-a76")
    # a core that starts 1 to 8 instructions a cycle
    assert row.instructions / 8 < cycles < row.instructions
    if f"llvm-mca {tool.version}" in PAGE and compiler_version() in PAGE:
        assert documented("arm-dotprod")["linear w4g64"][3] == f"{cycles:.1f}"
    assert tool.cycles(["add x0, x0, #1"], "aarch64", "cortex-a76", "+neon") == UNIT / 64
    with pytest.raises(LutraError, match="cannot model cortex-a76"):
        tool.cycles(["no such"], "aarch64", "cortex-a76", "+neon")
    with pytest.raises(LutraError, match="no times of tilezero"):
        tool.cycles(["tilezero %tmm0"], "x86_64", "sapphirerapids", "+amx-tile")


def test_without_the_tool_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependency, match="apt-get install llvm"):
        find_tool()
