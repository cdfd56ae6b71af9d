"""What each kernel of a decode step may touch: its contract. See `npu.hvx.contract`.

A step is of one row, and nothing in it is private to a thread. Where float kernels work on whole
vectors, what they may touch is rounded up to vectors of the widest version, on all versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import get_args

from cpu.kernels import argmax, attention, elementwise, embedding, linear, rows
from cpu.kernels.attention import SPAN
from edge.formats import Format
from edge.graph import GateFunction
from edge.kvcache import SCALE_BYTES, CacheFormat
from edge.planes import QUAD, STEP, TILE
from npu.hvx import dequantize, gemv, tables, zeros
from npu.hvx.contract import (
    PARTS,
    Contract,
    Memory,
    Number,
    Size,
    Sizes,
    Slot,
    Whole,
    contract,
    most,
    over,
)
from npu.hvx.floats import VECTOR_LANES
from npu.hvx.isa import VECTOR_BYTES
from npu.hvx.tables import BLOCK, TABLE_BYTES
from npu.hvx.weights import group_of

# The longest row, the most rows of a table and tiles of 64 rows, positions and heads: no product of
# sizes leaves 64 bits.
_WIDTH = 1 << 20
_VOCABULARY = 1 << 24
_TILES = 1 << 16
_POSITIONS = 1 << 24
_HEADS = 1 << 10
_HEAD_DIM = 1 << 12

_ONE_ROW, _NONE = Whole(1, 1), Whole(0, 0)
_STRIDE = Whole(0, 1 << 30)


def families(formats: Iterable[Format]) -> list[list[Contract]]:
    """The kernels of a device, by what is compiled together: those of decode steps that any model
    may need, and those of each format of weights, for decode steps and for tiles.
    """
    common = [_quantize(), _tables(), _split(), _norm(), _rope(), _int8(), _add(), _softcap()]
    common += [_argmax(), *map(_gate, get_args(GateFunction))]
    common += map(_attention, get_args(CacheFormat))
    return [common, *map(_of_format, formats)]


def _of_format(form: Format) -> list[Contract]:
    if not form.quantized:
        return [_embedding(form), _float_linear(form)]
    tiles = [_dequantize(form, kind) for kind in dequantize.kinds_of(form)]
    return [_embedding(form), _lookup(form), *tiles]


def _vectors(count: Size) -> Size:
    """Bytes of so many float32, to whole vectors."""
    return over(count, VECTOR_LANES) * VECTOR_BYTES


def _nothing(sizes: Sizes) -> Size:
    del sizes
    return 0


def _blocks(sizes: Sizes) -> Size:
    return over(sizes["width"], BLOCK)


_BLOCKS = Whole(1, _WIDTH // BLOCK)


# The values of blocks, whole.
_VALUES = Memory(lambda s: s["blocks"] * (2 * BLOCK), alignment=VECTOR_BYTES)


def _quantize() -> Contract:
    def sums(sizes: Sizes) -> Size:
        return _blocks(sizes) * sizes["groups"] * VECTOR_BYTES

    return contract(
        tables.quantize_kernel(),
        {
            "x": Memory(lambda s: _vectors(s["width"]), alignment=VECTOR_BYTES),
            "values": Memory(lambda s: _blocks(s) * (2 * BLOCK), True, VECTOR_BYTES),
            "peaks": Memory(lambda s: _blocks(s) * 4, written=True),
            "sums": Memory(sums, True, VECTOR_BYTES),
            "width": Whole(1, _WIDTH),
            "groups": Whole(1, 8),
        },
    )


def _tables() -> Contract:
    written = Memory(lambda s: s["blocks"] * TABLE_BYTES, True, VECTOR_BYTES)
    slots: dict[str, Slot] = {"values": _VALUES, "tables": written, "blocks": _BLOCKS}
    return contract(tables.tables_kernel(), slots)


def _split() -> Contract:
    written = Memory(_VALUES.size, True, VECTOR_BYTES)
    slots: dict[str, Slot] = {"values": _VALUES, "bytes": written, "blocks": _BLOCKS}
    return contract(tables.split_kernel(), slots)


def _codes(form: Format) -> Memory:
    """A format's planes, or bytes, of whole tiles.

    Where steps are not of whole vectors, a vector at any address is loaded as two, and one may lie
    behind the codes.
    """
    per_step = QUAD if form.bits == 8 else STEP
    step_bytes = TILE * form.bits * per_step // 8
    whole = step_bytes % VECTOR_BYTES == 0

    def size(sizes: Sizes) -> Size:
        steps = sizes["tiles"] * over(sizes["width"], per_step)
        return steps * step_bytes + (0 if whole else VECTOR_BYTES)

    return Memory(size, alignment=VECTOR_BYTES if whole else TILE)


def _groups(form: Format, sizes: Sizes, together: int = 1) -> Size:
    """How many scales a row has, so many of them together."""
    if form.granularity != "group":
        return 1
    return over(sizes["width"], together * form.group)


def _lookup(form: Format) -> Contract:
    group, by_table = group_of(form), form.bits < 8

    def granted(sizes: Sizes) -> Size:
        """Bytes of a number of 16 bits for every row and group."""
        return sizes["tiles"] * _groups(form, sizes) * (2 * TILE)

    def paired(sizes: Sizes) -> Size:
        """Bytes of offsets, which are of two groups each."""
        return sizes["tiles"] * _groups(form, sizes, 2) * zeros.PAIR_BYTES

    def tabled(sizes: Sizes) -> Size:
        return _blocks(sizes) * TABLE_BYTES

    def split(sizes: Sizes) -> Size:
        return over(sizes["width"], QUAD) * (2 * QUAD)

    rows = Memory(lambda s: s["tiles"] * (4 * TILE))
    return contract(
        gemv.lookup_kernel(form),
        {
            "tables": Memory(tabled if by_table else _nothing, alignment=VECTOR_BYTES),
            "bytes": Memory(_nothing if by_table else split),
            # an asymmetric format looks at all groups of a block, also where a row has less
            "sums": Memory(
                lambda s: _blocks(s) * (BLOCK // group * VECTOR_BYTES), alignment=VECTOR_BYTES
            ),
            "peaks": Memory(lambda s: _blocks(s) * 4),
            "codes": _codes(form),
            "steps": Memory(
                granted if form.granularity == "group" else _nothing, alignment=VECTOR_BYTES
            ),
            "offsets": Memory(paired if form.asymmetric else _nothing, alignment=VECTOR_BYTES),
            "units": rows,
            "bias": rows,
            "out": Memory(rows.size, written=True),
            "sums_out": Memory(rows.size, True, VECTOR_BYTES),
            "width": Whole(1, _WIDTH),
            "tiles": Whole(1, _TILES),
            "one": Whole(1, tables.RATIO_ONE),
            "factor": Number(),
            "scratch": Memory(lambda s: s[PARTS] * gemv.SCRATCH_BYTES, True, VECTOR_BYTES),
        },
    )


def _dequantize(form: Format, kind: dequantize.Kind) -> Contract:
    def scales(sizes: Sizes) -> Size:
        return sizes["tiles"] * _groups(form, sizes) * (2 * TILE)

    def zero_bytes(sizes: Sizes) -> Size:
        """A vector at a multiple of half a vector is loaded as two whole ones."""
        return sizes["tiles"] * _groups(form, sizes) * TILE + TILE + VECTOR_BYTES

    def tiles(sizes: Sizes) -> Size:
        columns = over(sizes["width"], dequantize.UNIT)
        return sizes["tiles"] * columns * (TILE // dequantize.UNIT * dequantize.tile_bytes(kind))

    scaled = kind == "f16" and form.granularity == "group"
    return contract(
        dequantize.dequantize_kernel(form, kind),
        {
            "codes": _codes(form),
            "scales": Memory(scales if scaled else _nothing, alignment=VECTOR_BYTES),
            "zeros": Memory(zero_bytes if form.asymmetric else _nothing, alignment=TILE),
            "out": Memory(tiles, True, VECTOR_BYTES),
            "width": Whole(1, _WIDTH),
            "tiles": Whole(1, _TILES),
        },
    )


# The other kernels of a layer.

_ROW_SLOTS: dict[str, Slot] = {
    "rows": _ONE_ROW,
    "width": Whole(1, _WIDTH),
    "x_stride": _STRIDE,
    "out_stride": _STRIDE,
    "private": _NONE,
    "x_private": _NONE,
}


def _row(size: Callable[[Sizes], Size]) -> dict[str, Slot]:
    """What kernels of whole rows have in common, of rows that take so many bytes."""
    return _ROW_SLOTS | {"x": Memory(size), "out": Memory(size, written=True)}


def _norm() -> Contract:
    def runs(sizes: Sizes) -> Size:
        """All but the last run of `size` elements, and that to whole vectors."""
        before = over(sizes["width"], sizes["size"]) - 1
        return before * sizes["size"] * 4 + _vectors(sizes["size"])

    weight = Memory(lambda s: _vectors(s["size"]))
    extra: dict[str, Slot] = {"weight": weight, "size": Whole(1, _WIDTH), "eps": Number()}
    return contract(rows.norm_kernel(), _row(runs) | extra)


def _rope() -> Contract:
    def heads(sizes: Sizes) -> Size:
        before = over(sizes["width"], sizes["head_dim"]) - 1
        last = most(sizes["head_dim"], sizes["half"] * 2)
        return (before * sizes["head_dim"] + last) * 4

    angles = Memory(lambda s: s["half"] * 4)
    extra: dict[str, Slot] = {
        "cos": angles,
        "sin": angles,
        "head_dim": Whole(1, _HEAD_DIM),
        "half": Whole(1, _HEAD_DIM),
        "position": _NONE,
        "table_stride": _STRIDE,
    }
    return contract(rows.rope_kernel(), _row(heads) | extra)


def _int8() -> Contract:
    return contract(rows.int8_kernel(), _row(lambda s: _vectors(s["width"])))


_TILE_SLOTS: dict[str, Slot] = {
    "a": Memory(lambda s: s["tiles"] * (4 * TILE)),
    "b": Memory(lambda s: s["tiles"] * (4 * TILE)),
    "out": Memory(lambda s: s["tiles"] * (4 * TILE), written=True),
    "rows": _ONE_ROW,
    "tiles": Whole(1, _TILES),
    "a_stride": _STRIDE,
    "b_stride": _STRIDE,
    "out_stride": _STRIDE,
    "number": Number(),
    "a_private": _NONE,
    "b_private": _NONE,
}


def _add() -> Contract:
    return contract(elementwise.add_kernel(), _TILE_SLOTS)


def _gate(function: GateFunction) -> Contract:
    return contract(elementwise.gate_kernel(function), _TILE_SLOTS)


def _softcap() -> Contract:
    return contract(elementwise.softcap_kernel(), _TILE_SLOTS | {"b": Memory(_nothing)})


def _argmax() -> Contract:
    slots: dict[str, Slot] = {
        "x": Memory(lambda s: _vectors(s["width"])),
        "out": Memory(lambda s: s[PARTS] * argmax.LINE, written=True),
        "width": Whole(1, _VOCABULARY),
    }
    return contract(argmax.argmax_kernel(), slots)


def _attention(form: CacheFormat) -> Contract:
    element_bytes = {"f32": 4, "f16": 2, "int8": 1}[form]
    scale_bytes = SCALE_BYTES if form == "int8" else 0

    def cache(sizes: Sizes) -> Size:
        """Up to the new row of the last head; a load for fewer lanes takes a whole vector."""
        row_bytes = sizes["head_dim"] * element_bytes + scale_bytes
        rows = (sizes["kv_heads"] - 1) * sizes["capacity"] + sizes["position"] + 1
        return rows * row_bytes + VECTOR_BYTES

    def new(sizes: Sizes) -> Size:
        before = (sizes["kv_heads"] - 1) * sizes["head_dim"] * 4
        return before + _vectors(sizes["head_dim"])

    def scratch(sizes: Sizes) -> Size:
        """For four queries, sums of a head and scores of a span."""
        padded = most(sizes["padded_dim"], over(sizes["head_dim"], VECTOR_LANES) * VECTOR_LANES)
        last = (padded + SPAN + TILE) * (4 * 4)
        return (sizes[PARTS] - 1) * sizes["scratch_stride"] + last

    heads = Memory(lambda s: s["heads"] * s["head_dim"] * 4)
    # a row's scale is wherever its last element ends
    alignment = 1 if scale_bytes else 4
    slots: dict[str, Slot] = {
        "query": heads,
        "key": Memory(new),
        "value": Memory(new),
        "keys": Memory(cache, True, alignment),
        "values": Memory(cache, True, alignment),
        "out": Memory(heads.size, written=True),
        "rows": _ONE_ROW,
        "position": Whole(0, _POSITIONS),
        "heads": Whole(1, _HEADS),
        "kv_heads": Whole(1, _HEADS),
        "head_dim": Whole(1, _HEAD_DIM),
        "capacity": Whole(1, _POSITIONS),
        "window": Whole(0, _POSITIONS),
        "scale": Number(),
        "softcap": Number(),
        "padded_dim": Whole(0, _WIDTH),
        "scratch": Memory(scratch, written=True),
        "scratch_stride": _STRIDE,
    }
    for name in ("query", "key", "value"):
        slots |= {f"{name}_stride": _STRIDE, f"{name}_private": _NONE}
    return contract(attention.attention_kernel(form), slots | {"out_stride": _STRIDE})


def _embedding(form: Format) -> Contract:
    """The token is in memory; the kernel takes the table's last row for what is beyond it."""

    def tiles(sizes: Sizes) -> Size:
        return over(sizes["vocabulary"], TILE)

    def planes(sizes: Sizes) -> Size:
        return tiles(sizes) * sizes["steps"] * (TILE * form.bits)

    def quads(sizes: Sizes) -> Size:
        """Of every tile but the last, those of its width; there, those of the steps."""
        width = over(sizes["width"], QUAD)
        return ((tiles(sizes) - 1) * width + most(width, sizes["steps"] * 2)) * (TILE * QUAD)

    def values(sizes: Sizes) -> Size:
        return sizes["vocabulary"] * sizes["width"] * (form.bits // 8)

    def granted(element_bytes: int) -> Callable[[Sizes], Size]:
        """An element for every row and group, up to the last step's group."""

        def size(sizes: Sizes) -> Size:
            last = (sizes["steps"] - 1) // (form.group // STEP) if by_group else 0
            return ((tiles(sizes) - 1) * sizes["groups"] + last + 1) * (TILE * element_bytes)

        return size

    by_group = form.granularity == "group"
    codes = values if not form.quantized else quads if form.bits == 8 else planes
    scales = _nothing if not form.quantized else granted(2 if by_group else 4)
    written: Callable[[Sizes], Size] = lambda s: s["steps"] * (4 * STEP)  # noqa: E731
    if not form.quantized:
        written = lambda s: s["width"] * 4  # noqa: E731
    slots: dict[str, Slot] = {
        "tokens": Memory(lambda s: s["rows"] * 4),
        "codes": Memory(codes),
        "scales": Memory((lambda _: 4) if form.granularity == "tensor" else scales),
        "zeros": Memory(granted(1) if form.asymmetric else _nothing),
        "out": Memory(written, written=True),
        "rows": _ONE_ROW,
        "width": Whole(1, _WIDTH),
        "groups": Whole(0, _WIDTH),
        "steps": Whole(1, _WIDTH),
        "vocabulary": Whole(1, _VOCABULARY),
        "out_stride": _STRIDE,
        "scale": Number(),
    }
    return contract(embedding.embedding_kernel(form), slots)


def _float_linear(form: Format) -> Contract:
    def values(sizes: Sizes) -> Size:
        """A load for fewer lanes takes a whole vector."""
        return sizes["outputs"] * sizes["width"] * (form.bits // 8) + VECTOR_BYTES

    slots: dict[str, Slot] = {
        "x": Memory(lambda s: s["width"] * 4),
        "values": Memory(values),
        "bias": Memory(lambda s: s["outputs"] * 4),
        "out": Memory(lambda s: s["outputs"] * 4, written=True),
        "rows": _ONE_ROW,
        "width": Whole(1, _WIDTH),
        "tiles": Whole(1, _TILES),
        "outputs": Whole(1, _TILES * TILE),
        "x_stride": _STRIDE,
        "out_stride": _STRIDE,
        "x_private": _NONE,
    }
    return contract(linear.float_linear_kernel(form), slots)
