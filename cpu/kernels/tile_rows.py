"""Rows in bfloat16 as a matrix unit takes them: converted, or left so by what computes them.

They are [rows / 16, inputs / 32, 16, 32]: a tile is 1 KB on end, so that reading tiles along a row
is reading memory in order. Inputs are filled with zeros up to a whole tile.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cpu.codegen.language import BF16, F32, I32, I64, Code, Value
from cpu.kernels.elementwise import GATES
from cpu.kernels.kernel import Arguments, Kernel, Thread, minimum
from cpu.kernels.rows import inverse_rms, own_rows
from edge.graph import GateFunction
from edge.planes import TILE

# Rows (or outputs) and inputs that a tile instruction takes; operands and sums are of one size.
SIDE, DEPTH = 16, 32
TILE_BYTES = 2 * SIDE * DEPTH

# Makes 16 values of a row, from an index on; past the row's end anything.
ValuesAt = Callable[[Value], Value]


def rows_bytes(rows: int, width: int) -> int:
    """Bytes of rows in bfloat16."""
    return -(-rows // SIDE) * (-(-width // DEPTH)) * TILE_BYTES


def bfloat16_kernel() -> Kernel:
    """x float32 [rows, width] -> rows in bfloat16, a share of them each thread."""

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        with own_rows(code, a, thread) as (row, x, out):
            _write_row(code, a, (row, out), lambda i: code.load(F32.of(SIDE), x, i * 4))

    slots = ("x", "out", "rows", "width", "x_stride", "out_stride", "private", "x_private")
    return Kernel("bfloat16", slots, body)


def norm_bfloat16_kernel() -> Kernel:
    """x float32 [rows, width] -> its RMS norm of whole rows in bfloat16, and nowhere else.

    The same to the bit as `rows.norm_kernel` and then `bfloat16_kernel`.
    """

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        kind = F32.of(SIDE)
        with own_rows(code, a, thread) as (row, x, out):
            scale = inverse_rms(code, a, x, a.integer("width")).broadcast(SIDE)

            def normed(i: Value) -> Value:
                return (
                    code.load(kind, x, i * 4) * scale * code.load(kind, a.pointer("weight"), i * 4)
                )

            _write_row(code, a, (row, out), normed)

    slots = (
        *("x", "weight", "out", "rows", "width", "x_stride", "out_stride", "eps"),
        *("private", "x_private"),
    )
    return Kernel("norm_bfloat16", slots, body)


def gate_bfloat16_kernel(function: GateFunction) -> Kernel:
    """function(a) * b in bfloat16, and nowhere else; threads split tiles of columns.

    The same to the bit as `elementwise.gate_kernel` and then `bfloat16_kernel`.
    """

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        kind, columns = F32.of(SIDE), [tile * TILE for tile in thread.share(a.integer("tiles"))]
        with code.loop(0, a.integer("rows")) as row:
            left, right = (
                code.offset(a.pointer(name), row * a.integer(f"{name}_stride")) for name in "ab"
            )

            def gated(i: Value, left: Value = left, right: Value = right) -> Value:
                return GATES[function](code.load(kind, left, i * 4)) * code.load(kind, right, i * 4)

            _write_row(code, a, (row, a.pointer("out")), gated, (columns[0], columns[1]))

    slots = ("a", "b", "out", "rows", "width", "tiles", "a_stride", "b_stride")
    return Kernel(f"gate_{function}_bfloat16", slots, body)


def _write_row(
    code: Code,
    a: Arguments,
    place: tuple[Value, Value],
    values_at: ValuesAt,
    columns: tuple[Value, Value] | None = None,
) -> None:
    """One row, by its number and where the first is; or its part in some tiles of columns."""
    (row, out), width = place, a.integer("width")
    padded = (width + (DEPTH - 1)) // DEPTH * DEPTH
    first, last = columns or (code.constant(I64, 0), padded)
    line = code.offset(out, row // SIDE * padded * (2 * SIDE) + row % SIDE * (2 * DEPTH))
    order = code.constant(I32.of(SIDE), list(range(SIDE)))
    with code.loop(first, minimum(last, padded), DEPTH) as i:
        halves = []
        for start in (i, i + SIDE):
            inside = order < (width - start).to(I32).broadcast(SIDE)
            halves.append(inside.select(values_at(start), 0.0))
        both = halves[0].shuffle(range(DEPTH), halves[1])
        code.store(_rounded(both), line, i * (2 * SIDE))


def _rounded(values: Value) -> Value:
    """float32 to the nearest bfloat16."""
    return values.to(BF16)


def in_tiles(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The twin: rows in bfloat16, with zeros for rows and inputs that are not there."""
    from edge.tensorfile import to_bfloat16

    rows, width = (
        -(-size // side) * side for size, side in zip(x.shape, (SIDE, DEPTH), strict=True)
    )
    padded = np.zeros((rows, width), np.float32)
    padded[: len(x), : x.shape[1]] = x
    tiles = to_bfloat16(padded).reshape(rows // SIDE, SIDE, width // DEPTH, DEPTH)
    return tiles.swapaxes(1, 2)
