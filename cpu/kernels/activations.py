"""Activations as the linear kernels take them: 16-bit integers with one scale a block.

A value is 256 * high + low, both int8, so that byte dot products take it in two terms. Decode waits
for the weights, so the second term costs little, and the error of the activations all but goes:
with one term, 2-bit models were off by a KL divergence of 0.009 on a trained model.

A quantized row is, at fixed offsets, the high bytes, the low bytes (zeros up to a whole vector, and
what was there up to a whole line), float32 scales of its blocks, and two int32 sums of each block:
of the values in the first and in the last half of every 8, by which a weight's zero is multiplied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpu.codegen.language import F32, I8, I32, I64, Code, Type, Value
from cpu.kernels import rows
from cpu.kernels.kernel import Arguments, Kernel, Thread, minimum
from cpu.kernels.rows import inverse_rms, own_rows, peak_of, row_peak
from edge.planes import TILE

TERMS = 2

# The largest value: 127 in the high byte.
PEAK = 127 * 256

# Blocks that stay below it are zeros: the inverse of their scale would be infinite.
LEAST = 1e-30

# Makes a vector of a type of a row's values, from an index on; past the row's end anything.
ValuesAt = Callable[[Type, Value], Value]


@dataclass(frozen=True)
class RowLayout:
    """Where things are in a quantized row of `width` values in blocks of `block`."""

    width: int
    block: int

    @property
    def blocks(self) -> int:
        return -(-self.width // self.block)

    @property
    def padded(self) -> int:
        """Bytes of a term with padding, so that a block can be read past its end."""
        return -(-self.width // 64) * 64

    @property
    def scales(self) -> int:
        """Offset of the scales in bytes."""
        return TERMS * self.padded

    @property
    def sums(self) -> int:
        """Offset of the sums in bytes."""
        return self.scales + 4 * self.blocks

    @property
    def slots(self) -> dict[str, int]:
        """Where kernels find the parts, by slot."""
        return {"padded": self.padded, "scales": self.scales, "sums": self.sums}

    @property
    def byte_count(self) -> int:
        """Bytes of a row, whole lines."""
        return -(-(self.sums + 8 * self.blocks) // 64) * 64


def quantize_kernel(block: int) -> Kernel:
    """x float32 [rows, width] -> quantized rows. Rows and copies are as in `rows.own_rows`.

    Where `one_scale` is not 0, all blocks of a row have the scale of its largest magnitude.
    """

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        with own_rows(code, a, thread) as (_, x, out):
            width = a.integer("width")
            whole = code.variable(code.constant(F32, 0.0))
            with code.when(a.integer("one_scale") > 0):
                whole.set(row_peak(code, x, width))
            values = _loaded(code, x)
            _quantize_row(code, a, values, out, block, whole.get(), _all_blocks(a, block))

    slots = (
        *("x", "out", "rows", "width", "x_stride", "out_stride", "padded", "scales", "sums"),
        "one_scale",
        *("private", "x_private"),
    )
    return Kernel(f"quantize_b{block}", slots, body)


def quantize_sliced_kernel(block: int) -> Kernel:
    """The same of a value in slices: each thread takes the blocks that begin in its tiles.

    Where all slices are of whole blocks, it reads nothing but what it may have written itself.
    """

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        most = _all_blocks(a, block)[1]
        first, last = (
            minimum((tile * TILE + (block - 1)) // block, most)
            for tile in thread.share(a.integer("tiles"))
        )
        zero = code.constant(F32, 0.0)
        with code.loop(0, a.integer("rows")) as row:
            x = code.offset(a.pointer("x"), row * a.integer("x_stride"))
            out = code.offset(a.pointer("out"), row * a.integer("out_stride"))
            _quantize_row(code, a, _loaded(code, x), out, block, zero, (first, last))

    slots = (
        *("x", "out", "rows", "tiles", "width", "x_stride", "out_stride"),
        *("padded", "scales", "sums"),
    )
    return Kernel(f"quantize_sliced_b{block}", slots, body)


def norm_quantize_kernel(block: int) -> Kernel:
    """x float32 [rows, width] -> quantized rows of its RMS norm, which is written nowhere.

    The same to the bit as `rows.norm_kernel` and then `quantize_kernel`: values are made twice, for
    the scale of their block and then for the integers. A norm is of a whole row.
    """

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        with own_rows(code, a, thread) as (_, x, out):
            scale = inverse_rms(code, a, x, a.integer("width"))

            def normed(kind: Type, i: Value) -> Value:
                weight = code.load(kind, a.pointer("weight"), i * 4)
                return code.load(kind, x, i * 4) * scale.broadcast(kind.lanes) * weight

            zero = code.constant(F32, 0.0)
            _quantize_row(code, a, normed, out, block, zero, _all_blocks(a, block))

    slots = (
        *("x", "weight", "out", "rows", "width", "x_stride", "out_stride", "eps"),
        *("padded", "scales", "sums", "private", "x_private"),
    )
    return Kernel(f"norm_quantize_b{block}", slots, body)


def _loaded(code: Code, x: Value) -> ValuesAt:
    """The values that are there."""
    return lambda kind, i: code.load(kind, x, i * 4)


def _all_blocks(a: Arguments, block: int) -> tuple[int, Value]:
    """The first of a row and one past its last."""
    return 0, (a.integer("width") + (block - 1)) // block


def _quantize_row(
    code: Code,
    a: Arguments,
    values_at: ValuesAt,
    out: Value,
    block: int,
    least_peak: Value,
    blocks: tuple[int | Value, Value],
) -> None:
    """Blocks of a row, whose scales are those of at least that magnitude."""
    width = a.integer("width")
    with code.loop(*blocks) as index:
        start = index * block
        count = minimum(width - start, code.constant(I64, block))

        def block_at(kind: Type, i: Value, start: Value = start) -> Value:
            return values_at(kind, start + i)

        peak = peak_of(code, block_at, count).maximum(least_peak)
        _quantize_block(code, a, block_at, out, index, block, peak)


def _quantize_block(
    code: Code,
    a: Arguments,
    values_at: ValuesAt,
    out: Value,
    index: Value,
    block: int,
    peak: Value,
) -> None:
    """One block: its scale, its values, their sums."""
    lanes = max(8, code.isa.lanes)  # the sums and the padding are of 8 values
    start = index * block
    count = minimum(a.integer("width") - start, code.constant(I64, block))
    order = code.constant(I32.of(lanes), list(range(lanes)))
    code.store(peak * (1 / PEAK), out, a.integer("scales") + index * 4)
    inverse = (peak > LEAST).select(code.constant(F32, PEAK) / peak, 0.0).broadcast(lanes)
    sums = code.variable(code.constant(I32.of(lanes), 0))
    with code.loop(0, count, lanes) as i:
        inside = order < (count - i).to(I32).broadcast(lanes)
        values = inside.select(values_at(F32.of(lanes), i), 0.0)
        rounded = (values * inverse).round().to(I32)
        sums.set(sums.get() + rounded)
        high = (rounded + 128).signed_shift(8)
        code.store(high.to(I8), out, start + i)
        code.store((rounded - (high << 8)).to(I8), out, a.integer("padded") + start + i)
    code.store(_half_sums(sums.get()), out, a.integer("sums") + index * 8)


def _half_sums(sums: Value) -> Value:
    """Sums of the lanes in the first and last 4 of every 8, as two int32."""
    lanes = sums.type.lanes
    first = sums.shuffle([i for i in range(lanes) if i % 8 < 4]).total()
    last = sums.shuffle([i for i in range(lanes) if i % 8 >= 4]).total()
    pair = first.broadcast(2)
    return pair.shuffle([0, 2], last.broadcast(2))


def quantize_rows(
    x: NDArray[np.float32], block: int
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """The twin: values int16 [rows, width] and scales [rows, blocks]."""
    rows, width = x.shape
    blocks = -(-width // block)
    padded = np.pad(x, ((0, 0), (0, blocks * block - width))).reshape(rows, blocks, block)
    largest = np.abs(padded).max(axis=2)
    inverse = np.where(largest > LEAST, PEAK / np.maximum(largest, LEAST), 0).astype(np.float32)
    values = np.rint(padded * inverse[:, :, None].astype(np.float32)).astype(np.int16)
    scales = largest * np.float32(1 / PEAK)
    return values.reshape(rows, -1)[:, :width], scales


def norm_quantize_rows(
    x: NDArray[np.float32], weight: NDArray[np.float32], eps: float, block: int
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """The twin: the norm's, then `quantize_rows`."""
    return quantize_rows(rows.norm(x, weight, eps), block)
