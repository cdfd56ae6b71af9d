"""Memory of a program: buffers that stay, and blocks that values take one after another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge import pages
from edge.bundle import Bundle
from edge.graph import Graph, Op, Take
from edge.planes import TILE, StoredTensor

_LINE = 64


@dataclass(frozen=True)
class Block:
    """A piece of memory that values take one after another."""

    address: int
    byte_count: int


class Memory:
    """Buffers by name, kept as long as the program; every one starts on a line and is padded."""

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[np.uint8]] = {}
        self.blocks: list[Block] = []

    @property
    def byte_count(self) -> int:
        """Bytes of all buffers; what was never written to takes none of the machine's memory."""
        return sum(array.nbytes for array in self.arrays.values())

    def address(self, name: str, byte_count: int) -> int:
        """Address of a buffer of at least this size. All who name it share it."""
        array = self.arrays.get(name)
        if array is None or array.nbytes < byte_count + 2 * _LINE:
            assert array is None, f"{name} is asked for in two sizes"
            array = pages.zeros((byte_count + 2 * _LINE,), np.uint8)
            self.arrays[name] = array
        return (array.ctypes.data + _LINE - 1) // _LINE * _LINE

    def copy(self, name: str, values: NDArray[np.float32]) -> int:
        """A float32 vector with zeros behind it, so that whole vectors may be read."""
        size = 4 * (len(values) + TILE)
        new = name not in self.arrays
        address = self.address(name, size)
        if new and values.any():  # zeros that are never written take no memory
            array = self.arrays[name]
            start = address - array.ctypes.data
            array[start : start + values.nbytes] = values.astype(np.float32).view(np.uint8)
        return address

    def part(self, bundle: Bundle, tensor: StoredTensor, name: str) -> int:
        """Address of one of a tensor's arrays, which lies in the bundle's mapped file."""
        del bundle
        return tensor.parts[name].ctypes.data


class Pool:
    """Blocks for the values of a step, used again when nothing reads them any more.

    Threads run apart between barriers: what one of them still reads, another may overwrite only
    behind a barrier. So a block that was given back is taken again after the next one. Steps of
    other numbers of rows take the same memory: only one runs at a time.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._free = [(block, -1) for block in memory.blocks]

    def take(self, byte_count: int, barriers: int) -> Block:
        """The smallest free block that will do, or a new one, behind that many barriers."""
        fitting = [
            entry
            for entry in self._free
            if entry[0].byte_count >= byte_count and entry[1] < barriers
        ]
        if fitting:
            best = min(fitting, key=lambda entry: entry[0].byte_count)
            self._free.remove(best)
            return best[0]
        address = self._memory.address(f"values/{len(self._memory.blocks)}", byte_count)
        self._memory.blocks.append(Block(address, byte_count))
        return self._memory.blocks[-1]

    def give(self, block: Block, barriers: int) -> None:
        """Give back a block that was last used behind that many barriers."""
        self._free.append((block, barriers))


def owners(graph: Graph) -> dict[str, str]:
    """Whose memory every value is in: its own, but for rows that are taken where they are."""
    found: dict[str, str] = {}
    for op in graph.ops():
        found[op.out] = found[op.x] if isinstance(op, Take) else op.out
    return found


def readers(graph: Graph) -> dict[str, list[Op]]:
    """Ops that read each value's memory, in order. Nothing here reads the last value."""
    owned_by = owners(graph)
    found: dict[str, list[Op]] = {}
    for op in graph.ops():
        for name in {owned_by[name] for name in op.inputs()}:
            found.setdefault(name, []).append(op)
    return found
