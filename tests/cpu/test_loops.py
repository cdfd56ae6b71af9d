"""Loops found in the text of machine code, and the work of their instructions."""

from __future__ import annotations

import pytest

from cpu.codegen.loops import Loop, find_loops, flattened

NESTED = """
	.text
kernel:
	mov	x0, xzr
.LBB0_1:
	mov	x1, xzr
	.p2align	5, , 16
.LBB0_2:
	sdot	v0.4s, v1.16b, v2.4b[1]
	add	x1, x1, #1
	cmp	x1, x3
	b.lo	.LBB0_2
	cbz	x4, .LBB0_4
.LBB0_3:
	fmla	v3.4s, v4.4s, v5.4s
	cbnz	x5, .LBB0_3
.LBB0_4:
	add	x0, x0, #1
	b.lo	.LBB0_1
	ret
"""


def test_loops_are_nested_as_they_are() -> None:
    (outer,) = find_loops(NESTED)
    assert [loop.instructions[0].split()[0] for loop in outer.inner] == ["sdot", "fmla"]
    assert [len(loop.instructions) for loop in flattened([outer])] == [4, 4, 2]
    assert outer.instructions == (
        "mov x1, xzr",
        "cbz x4, .LBB0_4",
        "add x0, x0, #1",
        "b.lo .LBB0_1",
    )
    assert outer.inner[0].vectors() == 1


def test_code_without_a_branch_back_has_no_loop() -> None:
    assert find_loops("kernel:\n\tcbz\tx0, .LBB0_1\n\tadd\tx0, x0, #1\n.LBB0_1:\n\tret\n") == []


@pytest.mark.parametrize(
    ("instructions", "products"),
    [
        (["sdot v0.4s, v1.16b, v2.4b[0]", "fmla v0.4s, v1.4s, v2.4s"], 16),
        (["usmmla v0.4s, v1.16b, v2.16b"] * 2, 64),
        (["smull v0.8h, v1.8b, v2.8b", "smull2 v0.8h, v1.16b, v2.16b"], 16),
        (["vpdpbusd %zmm1, %zmm2, %zmm3", "vfmadd231ps %zmm1, %zmm2, %zmm3"], 64),
        (["vpmaddubsw %ymm1, %ymm2, %ymm3", "vpmaddwd %ymm1, %ymm2, %ymm3"], 32),
        (["vpmaddwd (%rax), %ymm2, %ymm3"], 16),
        (["tdpbf16ps %tmm6, %tmm4, %tmm0"], 8192),
        (["vfmsub213ps %zmm1, %zmm2, %zmm3"], 16),
        (["add x0, x0, #1"], 0),
    ],
)
def test_products_are_those_of_the_most_specific_kind(
    instructions: list[str], products: int
) -> None:
    assert Loop(tuple(instructions)).products() == products
