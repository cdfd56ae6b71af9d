"""Scalar registers of the lookup loops: what each holds while a loop runs."""

from __future__ import annotations

from npu.hvx.schedule import Pointer

# r0 to r3 hold 0 to 3, which of a vector's tables is meant.
ONE, FOUR, BY_4096, BY_TURNS, TWO = "r1", "r4", "r5", "r6", "r7"
CODES = tuple(Pointer(name) for name in ("r9", "r10", "r11", "r12"))
TOTALS, SUMS, RATIO, TABLES_AT = (Pointer(name) for name in ("r15", "r16", "r17", "r28"))
CODE_STRIDE, SCALE_STRIDE, OFFSET_STRIDE = "r18", "r19", "r20"
ZERO_SHIFT, SUM_PAIRS = "r21", ("r22", "r23", "r24", "r25")
FETCHED_SHAPE = "r26", "r27"

# Of a turn's first tile, and of its second: 1 bit has two, and no other use for these registers.
SCALES = Pointer("r13"), Pointer("r11")
OFFSETS = Pointer("r14"), Pointer("r12")
FETCHED = Pointer("r8"), Pointer(TWO)

# What pairs of planes count, by pair; and by bits, the registers of the bytes that `vmpa`
# multiplies by. 3 bits take two of them that they have no other use for.
WEIGHTS = ((1, 2), (4, 8))
WEIGHTS_AT: dict[int, dict[tuple[int, int], str]] = {
    1: {},
    2: {(1, 2): "r30"},
    3: {(1, 2): "r30", (4, 0): "r31", (0, 1): BY_TURNS, (2, 4): TWO},
    4: {(1, 2): "r30", (4, 8): "r31"},
}

# Vectors that a code pointer reaches, half of them before it.
REACH = 16
