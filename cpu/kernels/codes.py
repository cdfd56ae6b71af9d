"""Between float values and an NPU's codes: rounding, outliers, and their products with weights.

An NPU computes with integers of one static scale a tensor. What is outside of their range is cut
off and listed for each row; a row's list times columns of the weights is what the NPU's product
lacks (llm.npu, arXiv 2407.05858, section 3.3).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cpu.codegen.language import F32, I8, I16, I32, I64, Code, Type, Value, Variable
from cpu.kernels.kernel import Arguments, Kernel, Thread
from edge.planes import TILE

Floats = NDArray[np.float32]

BITS = (8, 16)

ENCODE_SLOTS = (
    *("x", "codes", "channels", "cuts", "counts", "rows", "width", "x_stride", "codes_stride"),
    *("scale", "zero", "least", "most", "levels"),
)


def encode_kernel(bits: int) -> Kernel:
    """Codes of x float32 [rows, width], clipped to `least` and `most`, and what was cut off.

    For each row, `counts` has how many values were outside, I64; where they are and what was cut
    off are at the start of the row's `width` places in `channels`, I32, and `cuts`, float32. The
    zero, the largest code (`levels`) and the range are float32. Threads split the rows. The twin is
    `edge.npu.Activation.encode` of clipped values.
    """

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        first, last = thread.share(a.integer("rows"))
        with code.loop(first, last) as row:
            _Encoded(code, a, row, _integer(bits)).run()

    return Kernel(f"encode_u{bits}", ENCODE_SLOTS, body)


def _integer(bits: int) -> Type:
    return {8: I8, 16: I16}[bits]


def _columns(code: Code, width: Value) -> Iterator[tuple[int, Value]]:
    """Loops over columns: lanes, and the first of them; whole vectors, then what is left."""
    vectors = width - width % code.isa.lanes
    for lanes, first, last in (
        (code.isa.lanes, code.constant(I64, 0), vectors),
        (1, vectors, width),
    ):
        with code.loop(first, last, lanes) as column:
            yield lanes, column


class _Encoded:
    """Writes the code for one row."""

    def __init__(self, code: Code, a: Arguments, row: Value, kind: Type) -> None:
        self.code, self.a, self.row, self.kind = code, a, row, kind
        self.x = code.offset(a.pointer("x"), row * a.integer("x_stride"))
        self.codes = code.offset(a.pointer("codes"), row * a.integer("codes_stride"))
        places = row * a.integer("width") * 4
        self.channels = code.offset(a.pointer("channels"), places)
        self.cuts = code.offset(a.pointer("cuts"), places)

    def run(self) -> None:
        code, a = self.code, self.a
        count = code.variable(code.constant(I64, 0))
        scale, zero, levels = (a.number(name) for name in ("scale", "zero", "levels"))
        for lanes, column in _columns(code, a.integer("width")):
            x, clipped = self.clipped(column, lanes)
            rounded = (clipped / scale.broadcast(lanes)).round() + zero
            inside = rounded.maximum(0.0).minimum(levels).to(I32)
            code.store(inside.to(self.kind), self.codes, column * self.kind.byte_count)
            with code.when((x - clipped).magnitude().largest() > 0.0):
                self.list_outside(column, lanes, count)
        code.store(count.get(), a.pointer("counts"), self.row * 8)

    def clipped(self, column: Value, lanes: int) -> tuple[Value, Value]:
        """Values, and what of them is inside the range."""
        x = self.code.load(F32.of(lanes), self.x, column * 4)
        return x, x.maximum(self.a.number("least")).minimum(self.a.number("most"))

    def list_outside(self, column: Value, lanes: int, count: Variable) -> None:
        """Add those of some columns that are outside to the row's list."""
        code = self.code
        with code.loop(column, column + lanes) as channel:
            x, clipped = self.clipped(channel, 1)
            with code.when((x - clipped).magnitude() > 0.0):
                place = count.get() * 4
                code.store(channel.to(I32), self.channels, place)
                code.store(x - clipped, self.cuts, place)
                count.set(count.get() + 1)


DECODE_SLOTS = (
    *("codes", "factors", "bias", "added", "out", "rows", "width"),
    *("codes_stride", "added_stride", "out_stride", "scale", "zero"),
)


def decode_kernel(bits: int) -> Kernel:
    """out float32 [rows, width] = (codes - zero) * scale * factors + added + bias.

    `added` is a row for each row, or, at a stride of 0, one for all. Threads split the rows. The
    twin is `edge.npu.Activation.decode`.
    """

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        first, last = thread.share(a.integer("rows"))
        kind = _integer(bits)
        with code.loop(first, last) as row:
            codes, added, out = (
                code.offset(a.pointer(name), row * a.integer(f"{name}_stride"))
                for name in ("codes", "added", "out")
            )
            for lanes, column in _columns(code, a.integer("width")):
                held = code.load(kind.of(lanes), codes, column * kind.byte_count)
                value = (held.to(I32, unsigned=True).to(F32) - a.number("zero")) * a.number("scale")
                terms = (
                    code.load(F32.of(lanes), source, column * 4)
                    for source in (a.pointer("factors"), added, a.pointer("bias"))
                )
                factor, summand, bias = terms
                code.store(value * factor + summand + bias, out, column * 4)

    return Kernel(f"decode_u{bits}", DECODE_SLOTS, body)


ADD_COLUMNS_SLOTS = (
    *("columns", "starts", "places", "cuts", "out"),
    *("rows", "tiles", "column_stride", "out_stride"),
)


def add_columns_kernel() -> Kernel:
    """out float32 [rows, outputs]: for each row, the sum of the columns listed for it, each times
    its cut.

    Row r's list is from `starts[r]` to `starts[r + 1]` of `places`, I64 numbers of columns, and
    `cuts`, float32. Columns are float32, in whole tiles, as rows of out are. Threads split the
    tiles, and each takes one for all rows, so that its part of the columns stays in the caches.
    """

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        first, last = thread.share(a.integer("tiles"))
        with code.loop(first, last) as tile, code.loop(0, a.integer("rows")) as row:
            _add_tile(code, a, tile * (4 * TILE), row)

    return Kernel("add_columns", ADD_COLUMNS_SLOTS, body)


def _add_tile(code: Code, a: Arguments, offset: Value, row: Value) -> None:
    kind = F32.of(code.isa.lanes)
    sums = [code.variable(code.constant(kind, 0.0)) for _ in range(TILE // kind.lanes)]
    start, end = (code.load(I64, a.pointer("starts"), (row + i) * 8) for i in range(2))
    with code.loop(start, end) as index:
        place = code.load(I64, a.pointer("places"), index * 8)
        column = code.offset(a.pointer("columns"), place * a.integer("column_stride") + offset)
        cut = code.load(F32, a.pointer("cuts"), index * 4).broadcast(kind.lanes)
        for number, total in enumerate(sums):
            values = code.load(kind, column, number * kind.byte_count)
            total.set(values.fma(cut, total.get()))
    out = code.offset(a.pointer("out"), row * a.integer("out_stride") + offset)
    for number, total in enumerate(sums):
        code.store(total.get(), out, number * kind.byte_count)


def add_columns(
    columns: Floats, starts: NDArray[np.int64], places: NDArray[np.int64], cuts: Floats
) -> Floats:
    """The twin."""
    rows = [slice(*ends) for ends in itertools.pairwise(starts)]
    return np.stack([cuts[row] @ columns[places[row]] for row in rows])
