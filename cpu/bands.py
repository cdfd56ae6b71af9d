"""Gate and up of many rows by bands of columns: what they are is never there as a whole.

Each of them takes as much memory as all other values of a prompt's rows together. Of a band, a
thread makes its tiles of gate and of up, the product of the two, and its quantized blocks, before
it goes on to the next: they stay in its second-level cache, and nothing but the quantized rows,
which `down` reads, is written out. A matrix unit's rows are whole: there they would be in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cpu.calls import Place
from edge.graph import Gate, Graph, Linear, Op
from edge.planes import TILE

# Tiles of a band that each thread makes: whole blocks of any size, and few enough for the cache.
TILES_EACH = 4


@dataclass(frozen=True)
class Banded:
    """A product of two projections of one value, gate and up, that one projection alone reads."""

    product: Gate
    gate: Linear
    up: Linear
    reader: Linear


@dataclass(frozen=True)
class Band:
    """Some tiles of a value's columns: the first of them, how many, and where they are."""

    first: int
    tiles: int
    place: Place

    @classmethod
    def whole(cls, place: Place) -> Band:
        """All of a value."""
        return cls(0, -(-place.width // TILE), place)


def find_banded(
    graph: Graph, readers: Mapping[str, Sequence[Op]], quantized: Callable[[Linear], bool]
) -> dict[str, Banded | None]:
    """Values that are made by bands: with the gate's projection all is, with the others nothing.

    `quantized` says whether a projection's weights are.
    """
    found: dict[str, Banded | None] = {}
    projections: dict[str, Linear] = {}
    for op in (op for part in graph.subgraphs if part.kind != "head" for op in part.ops):
        if isinstance(op, Linear) and quantized(op):
            projections[op.out] = op
        if not isinstance(op, Gate):
            continue
        gate, up = (projections.get(name) for name in op.inputs())
        if not gate or not up or gate.x != up.x:
            continue
        if any(len(readers.get(name, ())) != 1 for name in (*op.inputs(), op.out)):
            continue
        reader = readers[op.out][0]
        if isinstance(reader, Linear) and quantized(reader):
            found |= {gate.out: Banded(op, gate, up, reader), up.out: None, op.out: None}
    return found


def bands(width: int, each: int, place: Place) -> Iterator[Band]:
    """A value of `width` columns, at most `each` tiles at a time, always in the same place."""
    tiles = -(-width // TILE)
    for first in range(0, tiles, each):
        yield Band(first, min(each, tiles - first), place)
