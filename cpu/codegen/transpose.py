"""Codes from planes by transposing bits, for vectors of 16 bytes or a few times as many.

A byte of a plane has one bit of 8 weights of a row. Four such vectors (4 planes of the same rows,
or 2 planes of two sets of rows) are transposed 4 bits by 4 bits, so that vector k holds, in each
byte's low and high nibble, the codes of weights k and k + 4. Interleaving the four by bytes puts 4
neighbouring weights of a row side by side, as dot products want them; shifts and masks take the
halves, and the second set of rows with its codes 4 times too large, apart.

Every instruction set has the interleaving, per 16 bytes; how two vectors exchange bits at least
cost is its table's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from cpu.codegen.isa import CodeLayout
from cpu.codegen.language import I8, Value


class Exchange(Protocol):
    """Swaps bits of two byte vectors: those of `a` at `mask << shift`, those of `b` at `mask`.

    Returns both: (a & mask) | (b & mask) << shift, and (a >> shift) & mask | b & ~mask.
    """

    def __call__(self, a: Value, b: Value, shift: int, mask: int) -> tuple[Value, Value]: ...


# By the number of planes, what takes the codes of each set of rows.
_MASKS = {1: (1, 4), 2: (3, 12), 3: (7,), 4: (15,)}


def padded_bits(planes: int) -> int:
    """Bits that a code takes while it is made: 2 or 4."""
    return 2 if planes <= 2 else 4


def expand_transposed(exchange: Exchange, planes: Sequence[Sequence[Value]]) -> Iterator[Value]:
    """The vectors of `transposed_layout`."""
    # of 3 planes, one stands in for the fourth; a single one is there twice
    padded = [planes[min(i, len(planes) - 1)] for i in range(padded_bits(len(planes)))]
    group = [plane[member] for member in range(len(planes[0])) for plane in padded]
    for quad in _interleaved(_transposed(exchange, group), 1):
        for half in (quad, quad >> 4):
            yield from (half & mask for mask in _MASKS[len(planes)])


def transposed_layout(vector_bytes: int, planes: int) -> CodeLayout:
    """Where `expand_transposed` leaves codes: slot 4 s + q has quads q of the blocks of set s."""
    sets = range(4 // padded_bits(planes))
    rows = [
        tuple(
            member * vector_bytes + block + 4 * quad + row
            for block in range(0, vector_bytes, 16)
            for row in range(4)
        )
        for member in sets
        for quad in range(4)
    ]
    made = [(4 * member + quad, half) for quad in range(4) for half in range(2) for member in sets]
    return CodeLayout(
        slots=tuple(slot for slot, _ in made),
        rows=tuple(rows),
        factors=tuple(4 ** (slot // 4) for slot in range(len(rows))),
        alternating=False,
        halves=tuple(half for _, half in made),
        row_count=len(sets) * vector_bytes,
    )


def unpack_lanes(vector_bytes: int, size: int, half: int) -> list[int]:
    """The byte order of an interleaving of two vectors' elements of `size` bytes, per 16 bytes.

    `half` says whether the low or the high 8 bytes of every 16 are taken.
    """
    lanes = []
    for block in range(0, vector_bytes, 16):
        for start in range(block + 8 * half, block + 8 * half + 8, size):
            lanes += [start + i for i in range(size)]
            lanes += [vector_bytes + start + i for i in range(size)]
    return lanes


def transposed_words(v: Sequence[Value]) -> list[Value]:
    """16 vectors of 16 words: word k of vector i becomes word i of vector k."""
    whole = I8.of(64)
    fours = [_interleaved([row.cast(whole) for row in v[i : i + 4]], 4) for i in range(0, 16, 4)]
    even, odd = (
        [lane for block in starts for lane in range(block, block + 16)]
        for starts in ((0, 32, 64, 96), (16, 48, 80, 112))
    )
    columns: dict[int, Value] = {}
    for place, (a, b, c, d) in enumerate(zip(*fours, strict=True)):  # 16 bytes are of 4 rows
        for first, outer in enumerate((even, odd)):
            left, right = a.shuffle(outer, b), c.shuffle(outer, d)
            for second, inner in enumerate((even, odd)):
                columns[4 * (first + 2 * second) + place] = left.shuffle(inner, right)
    return [columns[k].cast(v[0].type) for k in range(16)]


def _transposed(exchange: Exchange, v: list[Value]) -> list[Value]:
    """4 by 4 bits in every nibble: bit r of result k is bit k of vector r."""
    (v[0], v[2]), (v[1], v[3]) = (exchange(v[i], v[i + 2], 2, 0x33) for i in range(2))
    (v[0], v[1]), (v[2], v[3]) = (exchange(v[i], v[i + 1], 1, 0x55) for i in (0, 2))
    return v


def _interleaved(v: list[Value], unit: int) -> list[Value]:
    """Units of bytes, in every 16: quad q has those in the q-th quarter, the four side by side."""
    size = v[0].type.lanes
    pairs = [
        [v[i].shuffle(unpack_lanes(size, unit, half), v[i + 1]) for half in range(2)]
        for i in (0, 2)
    ]
    return [
        pairs[0][q // 2].shuffle(unpack_lanes(size, 2 * unit, q % 2), pairs[1][q // 2])
        for q in range(4)
    ]
