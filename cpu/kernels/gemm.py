"""Linear projections of many rows on a matrix unit, in bfloat16.

The three overlapped stages of T-MAN (arXiv 2511.11248, section 4.2): memory is asked for planes
ahead; their bits become codes, and codes weights with their group's scale and zero; and these, as
pairs of bfloat16 in the order of the unit's operand, fill a panel of 64 outputs by 256 inputs,
which stays in the caches while all rows are multiplied with it. Where T-MAN looks a nibble up for
its codes, the ISA's table transposes bits in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cpu.codegen.isa import RAISED, Tiles
from cpu.codegen.language import F16, F32, I8, I32, I64, Code, Value
from cpu.kernels.kernel import Arguments, Kernel, Thread, minimum
from cpu.kernels.tile_rows import DEPTH, SIDE, TILE_BYTES
from edge.formats import Format
from edge.planes import QUAD, STEP, TILE

Floats = NDArray[np.float32]
T = TypeVar("T", int, Value)

# Inputs of a panel: 32 outputs of it are 16 KB, which stay in the first-level cache.
PANEL = 256
_PANEL_BYTES = PANEL * TILE * 2

# Tiles of outputs that are worked on together, so that the rows of a panel's inputs are read from
# the second-level cache and their sums stay there: 8 tiles of 256 rows are 512 KB.
_TOGETHER = 4

# What memory brings at a time, in bytes.
_LINE = 64

# Inputs of a piece of a panel, which are of one group.
_PIECE = 2 * STEP

# Parts of a piece that steps beside products count in, so that pieces are spread among them.
_FRACTION = 1 << 16

# Rows and outputs that are multiplied at a time: four tiles of sums.
_BLOCK = 2 * SIDE
_BLOCK_BYTES = 4 * TILE_BYTES

SLOTS = (
    *("x", "codes", "scales", "zeros", "start", "out", "panels"),
    *("rows", "width", "tiles", "start_stride", "out_stride"),
)


def panels_bytes(rows: int) -> int:
    """Bytes that a thread works in: a panel that is filled, one that is multiplied, and sums."""
    return 2 * _PANEL_BYTES + _sums_bytes(-(-rows // _BLOCK)) * _TOGETHER


def _sums_bytes(blocks: T) -> T:
    """Of one tile of outputs and so many blocks of rows."""
    return blocks * (TILE // _BLOCK * _BLOCK_BYTES)


def gemm_kernel(form: Format) -> Kernel:
    """y float32 [rows, outputs] of bfloat16 rows; rows up to a multiple of 32 are computed.

    To the products are added the rows of `start`, at a stride of 0 the same to all: a bias.
    """

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        tiles = code.isa.tiles
        assert tiles is not None
        tiles.configure(code)
        _Share(code, a, form, thread).run()
        tiles.release(code)

    return Kernel(f"gemm_{form}", SLOTS, body)


class _Share:
    """Writes the code for a thread's tiles of outputs, some of them together.

    Of these it takes panel after panel of inputs, tile after tile: a turn each. The vector unit
    fills the next turn's panel, a piece at each step, while the matrix unit multiplies this one's,
    and memory is asked for the panel behind it.
    """

    def __init__(self, code: Code, a: Arguments, form: Format, thread: Thread) -> None:
        self.code, self.a, self.form = code, a, form
        self.begin, self.end = thread.share(a.integer("tiles"))
        self.blocks = (a.integer("rows") + (_BLOCK - 1)) // _BLOCK
        # panels are where they were for other rows, since what they hold must be finite
        size = _sums_bytes(self.blocks) * _TOGETHER
        self.panels = code.offset(a.pointer("panels"), thread.index * (2 * _PANEL_BYTES))
        sums = thread.count * (2 * _PANEL_BYTES) + thread.index * size
        self.sums = code.offset(a.pointer("panels"), sums)
        self.parity = code.variable(code.constant(I64, 0))

    def run(self) -> None:
        code = self.code
        first = _Panel(code, self.a, self.form, self.begin, code.constant(I64, 0), self.panels)
        with code.loop(0, (self.begin < self.end).select(first.pieces, 0)) as piece:
            first.fill(piece)
        panels = (self.a.integer("width") + (PANEL - 1)) // PANEL
        with code.loop(self.begin, self.end, _TOGETHER) as base:
            count = minimum(self.end - base, code.constant(I64, _TOGETHER))
            with code.loop(0, count * panels) as turn:
                self.take(base, count, turn, count * panels)

    def take(self, base: Value, count: Value, turn: Value, turns: Value) -> None:
        """One turn of `count` tiles from `base`; behind the last are the next tiles' first."""
        code = self.code

        def panel(ahead: int) -> _Panel:
            later, parity = turn + ahead, (self.parity.get() + ahead) % 2
            over = turns <= later
            tile = base + over.select(count + (later - turns), later % count)
            begin = over.select(code.constant(I64, 0), later // count * PANEL)
            place = code.offset(self.panels, parity * _PANEL_BYTES)
            return _Panel(code, self.a, self.form, tile, begin, place)

        following = panel(1)
        left = (following.tile < self.end).select(following.pieces, 0)
        self.multiply(panel(0), following, left, panel(2), turn % count)
        self.parity.set((self.parity.get() + 1) % 2)

    def multiply(
        self, panel: _Panel, following: _Panel, left: Value, behind: _Panel, index: Value
    ) -> None:
        """Add a panel's part to all rows: blocks of 32 rows by 32 outputs, four tiles of sums.

        `left` pieces of the following panel are filled beside, and asked for of that behind it.
        """
        code = self.code
        depth = (panel.end - panel.begin + (DEPTH - 1)) // DEPTH
        steps = depth * self.blocks * (TILE // _BLOCK)
        each = (left * _FRACTION + (steps - 1)) // steps
        share, filled = (code.variable(code.constant(I64, 0)) for _ in range(2))

        def step() -> None:
            share.set(share.get() + each)
            stop = minimum(share.get() // _FRACTION, left)
            with code.loop(filled.get(), stop) as piece:
                following.fill(piece)
                behind.ask(piece)
            filled.set(stop)

        sums = code.variable(code.offset(self.sums, _sums_bytes(self.blocks) * index))
        with code.loop(0, TILE, _BLOCK) as column, code.loop(0, self.blocks) as block:
            held = _Sums(code, self.a, panel, (block * _BLOCK, column), sums.get())
            _multiply_block(code, self.a, panel, held, depth, step)
            sums.set(code.offset(sums.get(), _BLOCK_BYTES))


class _Sums:
    """Four tiles of sums: 32 rows by 32 outputs.

    They begin as the rows of `start`, and go to those of `out` with the last panel. In between they
    are on end: a tile's rows there are pages apart, and each would cost a look-up of its address.
    """

    def __init__(
        self, code: Code, a: Arguments, panel: _Panel, place: tuple[Value, Value], memory: Value
    ) -> None:
        self.code, self.a, self.row = code, a, place[0]
        self.memory, self.column = memory, place[1]
        self.output = panel.tile * TILE + self.column
        self.first, self.last = panel.begin.equals(0), panel.end.equals(a.integer("width"))

    def load(self, tiles: Tiles) -> None:
        self.move(tiles.load, "start", self.first)

    def store(self, tiles: Tiles) -> None:
        self.move(tiles.store, "out", self.last)

    def move(self, move: Callable[[Code, int, Value, Value], None], name: str, out: Value) -> None:
        """Load or store the tiles: in the rows of `name` where `out` holds."""
        stride = self.a.integer(f"{name}_stride")
        rows = self.code.offset(self.a.pointer(name), self.row * stride + self.output * 4)
        line = out.select(stride, 4 * SIDE)
        for index in range(4):
            down, right = stride * (index // 2 * SIDE), index % 2 * (4 * SIDE)
            place = self.code.offset(rows, down + right)
            move(self.code, index, out.select(place, self.held(index)), line)

    def held(self, index: int) -> Value:
        return self.code.offset(self.memory, index * TILE_BYTES)


def _multiply_block(
    code: Code, a: Arguments, panel: _Panel, sums: _Sums, depth: Value, step: Callable[[], None]
) -> None:
    """32 rows by 32 outputs; `step` is other work to do beside."""
    tiles = code.isa.tiles
    assert tiles is not None
    line = code.constant(I64, 2 * DEPTH)
    row_bytes = (a.integer("width") + (DEPTH - 1)) // DEPTH * TILE_BYTES
    sums.load(tiles)
    x = code.offset(a.pointer("x"), sums.row // SIDE * row_bytes + panel.begin * (2 * SIDE))
    weights = code.offset(panel.memory, sums.column * (2 * PANEL))
    with code.loop(0, depth * TILE_BYTES, TILE_BYTES) as k:
        for i in range(2):
            tiles.load(code, 4 + i, code.offset(x, row_bytes * i + k), line)
            tiles.load(code, 6 + i, code.offset(weights, k + 2 * PANEL * SIDE * i), line)
        for i in range(2):
            for j in range(2):
                tiles.dot(code, 2 * i + j, 4 + i, 6 + j)
        step()
    sums.store(tiles)


class _Panel:
    """Writes the code that makes a panel: weights of 64 outputs as pairs of bfloat16.

    The panel is [outputs / 16, inputs / 2, 16, 2], so that a tile of it is 1 KB on end. What it
    holds past the width is multiplied by zeros of x, and must be finite.
    """

    def __init__(
        self, code: Code, a: Arguments, form: Format, tile: Value, begin: Value, memory: Value
    ) -> None:
        self.code, self.a, self.form, self.tile, self.memory = code, a, form, tile, memory
        width = a.integer("width")
        self.begin, self.end = begin, minimum(begin + PANEL, width)
        self.steps = (width + (STEP - 1)) // STEP
        self.groups = code.constant(I64, 1)
        if form.granularity == "group":
            self.groups = (width + (form.group - 1)) // form.group
        self.pieces = (self.end - begin + (_PIECE - 1)) // _PIECE * (TILE // SIDE)

    def fill(self, piece: Value) -> None:
        """One piece: 16 outputs by 16 inputs."""
        code, blocks = self.code, TILE // SIDE
        inner, column = piece // blocks * _PIECE, piece % blocks * SIDE
        tiles, group = code.isa.tiles, code.constant(I64, 0)
        assert tiles is not None
        if self.form.granularity == "group":
            group = (self.begin + inner) // self.form.group
        scale, shift = self.scale_and_shift(group, column)
        first = (self.begin + inner) // STEP
        # behind the width any codes will do
        steps = [first, minimum(first + 1, self.steps - 1)]
        place = column * (2 * PANEL) + inner * (2 * SIDE)
        for step in steps:
            values = [value.fma(scale, shift) for value in self.codes(step, column)]
            for even, odd in zip(values[::2], values[1::2], strict=True):
                code.store(tiles.paired(code, even, odd), self.memory, place)
                place = place + 4 * SIDE

    def ask(self, piece: Value) -> None:
        """Have memory bring what a piece's turn in the panel is of, so that all ask for all."""
        code, form, step = self.code, self.form, self.begin // STEP
        size = form.bits * SIDE * (_PIECE // STEP)
        tile_bytes = self.steps * (form.bits * TILE)
        if form.bits == 8:
            tile_bytes = (self.a.integer("width") + (QUAD - 1)) // QUAD * (QUAD * TILE)
        codes = code.offset(
            self.a.pointer("codes"), self.tile * tile_bytes + step * (form.bits * TILE)
        )
        for line in range(0, size, _LINE):
            code.prefetch(codes, piece * size + line)
        if form.granularity == "group":
            group = self.tile * self.groups + self.begin // form.group
            scales = code.offset(self.a.pointer("scales"), group * (2 * TILE))
            code.prefetch(scales, piece * (2 * SIDE * _PIECE // form.group))

    def codes(self, step: Value, column: Value) -> Iterator[Value]:
        """Codes of 16 outputs as floats, input by input of 8: raised where they have few bits."""
        code, bits = self.code, self.form.bits
        if bits < 8:
            place = (self.tile * self.steps + step) * (bits * TILE) + column
            planes = [
                code.load(I8.of(SIDE), self.a.pointer("codes"), place + plane * TILE)
                for plane in range(bits)
            ]
            assert code.isa.tiles is not None
            yield from code.isa.tiles.raised_codes(code, planes)
            return
        quads = (self.a.integer("width") + (QUAD - 1)) // QUAD
        # the last step may be of one half; x of the other is 0, so any codes will do
        for quad in (step * 2, minimum(step * 2 + 1, quads - 1)):
            place = ((self.tile * quads + quad) * TILE + column) * QUAD
            words = code.load(I32.of(SIDE), self.a.pointer("codes"), place)
            yield from (((words >> (8 * i)) & 255).to(F32) for i in range(4))

    def scale_and_shift(self, group: Value, column: Value) -> tuple[Value, Value]:
        """Scales of 16 outputs, and minus zero times scale; zeros raised as codes are."""
        code, a, form = self.code, self.a, self.form
        raised = RAISED if form.bits < 8 else 0
        if form.granularity == "tensor":
            scale = code.load(F32, a.pointer("scales")).broadcast(SIDE)
            return scale, scale * float(-form.zero - raised)
        index = (self.tile * self.groups + group) * TILE + column
        kind = F16 if form.granularity == "group" else F32
        scale = code.load(kind.of(SIDE), a.pointer("scales"), index * kind.byte_count).to(F32)
        if not form.asymmetric:
            return scale, scale * float(-form.zero - raised)
        zeros = code.load(I8.of(SIDE), a.pointer("zeros"), index).to(I32, unsigned=True)
        parts = (zeros + (raised * form.zero_parts - form.zero_first)).to(F32)
        return scale, parts * (scale * (-1 / form.zero_parts))


def gemm(weights: Floats, x: Floats) -> Floats:
    """The twin: both rounded to bfloat16, summed in float64; weights [outputs, width]."""
    from edge.tensorfile import to_bfloat16, to_float32

    w, rounded = (
        to_float32(to_bfloat16(array), "BF16").astype(np.float64) for array in (weights, x)
    )
    return (rounded @ w.T).astype(np.float32)
