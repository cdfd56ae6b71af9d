"""What the zeros of an asymmetric format add: a block's sums of activations times its offsets.

Offsets are multiplied by their group's scale when a bundle is opened, so that what they add is one
sum over a block's groups, taken once a block and beside the products: `vdmpy` takes two groups at a
time. Sums of activations are rounded to few enough bits that no total leaves 32, with a shift of
the block's own, so that all groups of a block are rounded alike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cpu.codegen.language import I32, Code, Value
from edge.formats import Format
from edge.planes import TILE, tile_count
from npu.hvx import vectors
from npu.hvx.isa import VECTOR_BYTES
from npu.hvx.tables import BLOCK
from npu.hvx.weights import BYTE_SHIFT, group_of

# Bytes of the offsets of two groups of a tile: of even rows, then of odd ones.
PAIR_BYTES = 2 * VECTOR_BYTES


def groups_of(form: Format) -> int:
    """Groups of a block."""
    return BLOCK // group_of(form)


def pairs_of(form: Format) -> int:
    """Pairs of groups of a block; where it is one group, the second of the pair is nothing."""
    return -(-groups_of(form) // 2)


def shift_of(form: Format) -> int:
    """By how much a block's sum of offsets times activations is shifted, unrounded ones."""
    return 15 - form.bits + (BYTE_SHIFT if form.bits == 8 else 0)


def kept_bits(form: Format) -> int:
    """Bits that a group's sum of activations keeps, such that a block's total fits 32."""
    return min(14, 17 - groups_of(form).bit_length())


def added(
    form: Format, offsets: NDArray[np.int16], sums: NDArray[np.int32], rows: int
) -> NDArray[np.int64]:
    """The twin: what is added to blocks' sums, [rows, blocks]; sums of activations by group."""
    by_block = sums.astype(np.int64).reshape(-1, groups_of(form))
    shift = _excess(form, by_block)[:, None]
    rounded = (by_block + (1 << shift >> 1)) >> shift
    plain = offsets.transpose(0, 3, 2, 1, 4).reshape(tile_count(rows) * TILE, -1)[:rows]
    if form.granularity == "group":
        lacking = rounded.size - plain.shape[1]
        plain = np.pad(plain, ((0, 0), (0, max(0, lacking))))[:, : rounded.size]
    else:
        plain = np.repeat(plain[:, :1], rounded.size, axis=1)
    totals = (plain * rounded.reshape(-1)).reshape(rows, -1, groups_of(form)).sum(axis=2)
    made: NDArray[np.int64] = totals >> (shift_of(form) - shift[:, 0])
    return made


def _excess(form: Format, sums: NDArray[np.int64]) -> NDArray[np.int64]:
    """By how much sums [blocks, groups] are shifted: bits of the longest beyond what is kept."""
    bits = np.bitwise_or.reduce(sums ^ (sums >> 63), axis=1)
    lengths = np.frexp(bits.astype(np.float64))[1]
    return np.maximum(lengths.astype(np.int64) - kept_bits(form), 0)


def sum_pairs(code: Code, form: Format, sums: Value) -> tuple[list[Value], Value]:
    """The kernels' own: rounded sums of a block, two to a word; and the shift of what is added.

    `sums` is where the block's sums of activations are, a vector each.
    """
    places = range(0, groups_of(form) * VECTOR_BYTES, VECTOR_BYTES)
    words = [code.load(I32, sums, place) for place in places]
    bits = code.constant(I32, 0)
    for word in words:
        bits = bits | (word ^ word.signed_shift(31))
    shift = (-vectors.leading_zeros(bits) + (32 - kept_bits(form))).maximum(0)
    half = (code.constant(I32, 1) << shift) >> 1
    rounded = [(word + half).signed_shift(shift) for word in words]
    rounded += [code.constant(I32, 0)] * (len(words) % 2)
    pairs = [
        (first & 0xFFFF) | (second << 16)
        for first, second in zip(rounded[::2], rounded[1::2], strict=True)
    ]
    return pairs, -shift + shift_of(form)
