"""Linear projections of many rows on a matrix unit, in bfloat16.

The two-level lookup of T-MAN (arXiv 2511.11248, section 4.2): a nibble of each plane is spread to 4
codes, codes become weights with their group's scale and zero, and weights go, as pairs of bfloat16
in the order of the unit's operand, into a panel of 64 outputs by 512 inputs that stays in the
caches while all rows are multiplied with it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cpu.codegen.isa import Tiles
from cpu.codegen.language import BF16, F16, F32, I8, I32, I64, Code, Value
from cpu.kernels.kernel import Arguments, Kernel, Thread, minimum
from cpu.kernels.rows import own_rows
from edge.formats import Format
from edge.planes import QUAD, STEP, TILE

Floats = NDArray[np.float32]

# Inputs of a panel: 32 outputs of it are 32 KB, which stay in the first-level cache.
PANEL = 512
PANEL_BYTES = PANEL * TILE * 2

# Outputs and inputs that one tile instruction takes.
_SIDE, _DEPTH = 16, 32

SLOTS = (
    *("x", "codes", "scales", "zeros", "bias", "out", "panel"),
    *("rows", "width", "tiles", "x_stride", "out_stride", "panel_stride"),
)


def bfloat16_kernel() -> Kernel:
    """x float32 [rows, width] -> bfloat16, with zeros up to a whole number of tile depths."""

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        width = a.integer("width")
        order = code.constant(I32.of(_SIDE), list(range(_SIDE)))
        padded = (width + (_DEPTH - 1)) // _DEPTH * _DEPTH
        with own_rows(code, a, thread) as (_, x, out), code.loop(0, padded, _SIDE) as i:
            values = code.load(F32.of(_SIDE), x, i * 4)
            inside = order < (width - i).to(I32).broadcast(_SIDE)
            code.store(_rounded(inside.select(values, 0.0)), out, i * 2)

    slots = ("x", "out", "rows", "width", "x_stride", "out_stride", "private", "x_private")
    return Kernel("bfloat16", slots, body)


def _rounded(values: Value) -> Value:
    """float32 to the nearest bfloat16."""
    return values.to(BF16)


def gemm_kernel(form: Format) -> Kernel:
    """y float32 [rows, outputs] of bfloat16 rows; rows up to a multiple of 32 are computed."""

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        tiles = code.isa.tiles
        assert tiles is not None
        first, last = thread.share(a.integer("tiles"))
        panel = code.offset(a.pointer("panel"), thread.index * a.integer("panel_stride"))
        tiles.configure(code)
        with code.loop(first, last) as tile:
            _start(code, a, tile)
            with code.loop(0, a.integer("width"), PANEL) as begin:
                end = minimum(begin + PANEL, a.integer("width"))
                _Panel(code, a, form, tile, panel).fill(begin, end)
                _multiply(code, a, tiles, (tile, panel), begin, end)
        tiles.release(code)

    return Kernel(f"gemm_{form}", SLOTS, body)


def _start(code: Code, a: Arguments, tile: Value) -> None:
    """Outputs begin as the bias."""
    bias = code.load(F32.of(TILE), a.pointer("bias"), tile * (4 * TILE))
    with code.loop(0, (a.integer("rows") + 31) // 32 * 32) as row:
        code.store(bias, a.pointer("out"), row * a.integer("out_stride") + tile * (4 * TILE))


def _multiply(
    code: Code, a: Arguments, tiles: Tiles, place: tuple[Value, Value], begin: Value, end: Value
) -> None:
    """Add the panel's part to all rows: blocks of 32 rows by 32 outputs, four tiles of sums."""
    tile, panel = place
    x_stride, out_stride = a.integer("x_stride"), a.integer("out_stride")
    panel_stride = code.constant(I64, TILE * 4)
    with code.loop(0, TILE, 2 * _SIDE) as column, code.loop(0, a.integer("rows"), 2 * _SIDE) as row:
        out = code.offset(a.pointer("out"), row * out_stride + (tile * TILE + column) * 4)
        corners = [
            code.offset(out, out_stride * (_SIDE * i) + 4 * _SIDE * j)
            for i in range(2)
            for j in range(2)
        ]
        for index, corner in enumerate(corners):
            tiles.load(code, index, corner, out_stride)
        x = code.offset(a.pointer("x"), row * x_stride)
        with code.loop(begin, end, _DEPTH) as k:
            for i in range(2):
                tiles.load(code, 4 + i, code.offset(x, x_stride * (_SIDE * i) + k * 2), x_stride)
            pairs = code.offset(panel, (k - begin) * (2 * TILE) + column * 4)
            for j in range(2):
                tiles.load(code, 6 + j, code.offset(pairs, 4 * _SIDE * j), panel_stride)
            for i in range(2):
                for j in range(2):
                    tiles.dot(code, 2 * i + j, 4 + i, 6 + j)
        for index, corner in enumerate(corners):
            tiles.store(code, index, corner, out_stride)


class _Panel:
    """Writes the code that makes a panel: weights of 64 outputs as pairs of bfloat16.

    The panel is [inputs / 2, 64, 2]; inputs past the width are given zeros by x.
    """

    def __init__(self, code: Code, a: Arguments, form: Format, tile: Value, panel: Value) -> None:
        self.code, self.a, self.form, self.tile, self.panel = code, a, form, tile, panel
        width = a.integer("width")
        self.steps = (width + (STEP - 1)) // STEP
        self.groups = code.constant(I64, 1)
        if form.granularity == "group":
            self.groups = (width + (form.group - 1)) // form.group

    def fill(self, begin: Value, end: Value) -> None:
        """Groups of inputs, each with its own scales; blocks of 16 outputs within."""
        code = self.code
        size = self.form.group if self.form.granularity == "group" else PANEL
        with code.loop(begin, end, size) as start, code.loop(0, TILE, _SIDE) as column:
            stop = minimum(start + size, end)
            group = start // size if self.form.granularity == "group" else code.constant(I64, 0)
            scale, shift = self.scale_and_shift(group, column)
            # whole tile depths: what is past the end of the codes is multiplied by zeros
            with code.loop(start // STEP, (stop + (STEP - 1)) // STEP) as step:
                for half, words in enumerate(self.words(step, column)):
                    pairs = step * (STEP // 2) + half * 2 - begin // 2
                    self.store(words, scale, shift, pairs * (4 * TILE) + column * 4)

    def words(self, step: Value, column: Value) -> list[Value]:
        """Codes of 16 outputs by 8 inputs: two vectors of words of 4 codes."""
        code, bits = self.code, self.form.bits
        if bits == 8:
            quads = (self.a.integer("width") + 3) // 4
            place = (self.tile * quads + step * 2) * (QUAD * TILE) + column * QUAD
            kind = I32.of(_SIDE)
            return [
                code.load(kind, self.a.pointer("codes"), place + half * (QUAD * TILE))
                for half in range(2)
            ]
        place = (self.tile * self.steps + step) * (bits * TILE) + column
        assert code.isa.tiles is not None
        spread = code.isa.tiles.spread
        low, high = (code.constant(I32.of(_SIDE), 0) for _ in range(2))
        for plane in range(bits):
            byte = code.load(I8.of(_SIDE), self.a.pointer("codes"), place + plane * TILE)
            both = byte.to(I32, unsigned=True)
            low = low | (spread(code, both) << plane)
            high = high | (spread(code, both >> 4) << plane)
        return [low, high]

    def store(self, words: Value, scale: Value, shift: Value, place: Value) -> None:
        """Weights of words of 4 codes, as two rows of pairs."""
        code = self.code
        values = [((words >> (8 * i)) & 255).to(F32).fma(scale, shift) for i in range(4)]
        for row in range(2):
            code.store(_paired(values[2 * row], values[2 * row + 1]), self.panel,
                       place + row * (4 * TILE))  # fmt: skip

    def scale_and_shift(self, group: Value, column: Value) -> tuple[Value, Value]:
        """Scales of 16 outputs, and minus zero times scale."""
        code, a, form = self.code, self.a, self.form
        if form.granularity == "tensor":
            scale = code.load(F32, a.pointer("scales")).broadcast(_SIDE)
            return scale, scale * float(-form.zero)
        index = (self.tile * self.groups + group) * TILE + column
        kind = F16 if form.granularity == "group" else F32
        scale = code.load(kind.of(_SIDE), a.pointer("scales"), index * kind.byte_count).to(F32)
        if not form.asymmetric:
            return scale, scale * float(-form.zero)
        zeros = code.load(I8.of(_SIDE), a.pointer("zeros"), index).to(I32, unsigned=True)
        return scale, -(zeros.to(F32) * scale)


def _paired(first: Value, second: Value) -> Value:
    """Two float32 vectors as one of bfloat16 pairs, rounded to nearest."""
    kind = I32.of(first.type.lanes)
    low, high = (value.cast(kind) + 0x8000 for value in (first, second))
    return (low >> 16) | (high & -0x10000)


def gemm(weights: Floats, x: Floats) -> Floats:
    """The twin: both rounded to bfloat16, summed in float64; weights [outputs, width]."""
    from edge.tensorfile import to_bfloat16, to_float32

    w, rounded = (
        to_float32(to_bfloat16(array), "BF16").astype(np.float64) for array in (weights, x)
    )
    return (rounded @ w.T).astype(np.float32)
