"""Packets of the float kernels' loops: what docs/hexagon.md says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from npu.hvx import layer
from npu.hvx.isa import table

PAGE = Path(__file__).resolve().parents[3] / "docs" / "hexagon.md"

# The rows of the page's table, in the order of `layer.KERNELS`.
ROWS = (
    "norm, squares added",
    "RoPE, elements turned",
    "SiLU gate",
    "GELU (tanh) gate",
    "attention, products with values, f16",
    "attention, products with values, int8",
)

VERSIONS = (67, 68, 73, 79)


@pytest.mark.parametrize(("place", "version"), list(enumerate(VERSIONS)))
def test_loops_take_what_the_page_says(place: int, version: int) -> None:
    isa = table(version)
    for (kernel, vectors, _), name in zip(layer.KERNELS, ROWS, strict=True):
        row = re.search(
            rf"\| {re.escape(name)} \| [^|]+ \|(.*)\|", PAGE.read_text(encoding="utf-8")
        )
        assert row is not None, name
        said = int(row[1].split("|")[place])
        made = 1000 * layer.count(kernel, isa).packets / (vectors * isa.lanes)
        assert said * 0.9 <= made <= said * 1.1, (kernel.name, version)  # another LLVM is near


def test_loops_end_where_they_are_left() -> None:
    text = "\n".join(
        [
            "\tloop0(.LBB0_2,r1)",
            ".LBB0_1:",
            ".LBB0_2:",
            "\t{",
            "\t\tr1.sf = add",
            "\t} :endloop0",
            "\t{",
            "\t\tif (p0) jump:nt .LBB0_1",
            "\t}",
        ]
    )
    (found,) = layer.loops(text)
    assert found[0] == ".LBB0_2:"
    assert found[-1] == "\t} :endloop0"
