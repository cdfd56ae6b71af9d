"""Values of a step: where they are, how they lie among the threads, and barriers between calls.

Threads split each kernel's work, and a barrier stands only where a kernel reads what another
thread wrote. How a value lies among the threads says whether that is so:

    whole     all of it is written and all threads may read it
    sliced    each thread wrote its own tiles of columns
    split     each thread wrote its own rows (or heads)
    private   each thread wrote all of it, in a copy of its own

For a row or two, norms, rotations and quantization are made by every thread in private, which is
cheaper than a barrier: a decode step has four barriers a layer, or eight where it looks up sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from cpu.calls import Dynamic, Lowered, Place, Spread
from cpu.kernels import argmax
from cpu.kernels.kernel import Kernel
from cpu.memory import Block, Memory, Pool, owners, readers
from edge.bundle import Bundle
from edge.graph import Graph, Linear, Op
from edge.planes import TILE, StoredTensor

# Rows up to which whole-row kernels are made by every thread in private, and codes are expanded
# anew for each.
PRIVATE_ROWS = 2


def stride_of(width: int) -> int:
    """Bytes from a row of values to the next: whole tiles, and one that vectors may reach into."""
    return 4 * (-(-width // TILE) * TILE + TILE)


class Values:
    """Places of a graph's values in memory, and the calls that have been made of them so far."""

    def __init__(self, bundle: Bundle, memory: Memory, threads: int, max_rows: int) -> None:
        self.bundle = bundle
        self.graph: Graph = bundle.graph
        self.memory = memory
        self.threads, self.max_rows = threads, max_rows
        self.private = max_rows <= PRIVATE_ROWS
        self.tensors: dict[str, StoredTensor] = {
            tensor.name: bundle.tensor(tensor.name) for tensor in self.graph.tensors
        }
        self.widths = {name: shape[1] for name, shape in self.graph.shapes().items()}
        self.places: dict[str, Place] = {}
        self.converted: dict[tuple[str, str], Place] = {}
        self.lowered = Lowered()
        self.pool = Pool(memory)
        self.blocks: dict[str, list[Block]] = {}
        self.barriers = 0
        self.owners, self.readers = owners(self.graph), readers(self.graph)

    def place(self, name: str, spread: Spread, *, taken: bool = False) -> Place:
        """Make a place for a value."""
        width = self.widths[name]
        stride = stride_of(width)
        private = stride * self.max_rows if spread == "private" else 0
        size = (private * self.threads) or stride * self.max_rows
        place = Place(self.take(name, size), width, stride, private, spread, taken)
        self.places[name] = place
        return place

    def take(self, name: str, byte_count: int) -> int:
        """Memory that is the value's, in one form or another, up to its last reader."""
        block = self.pool.take(byte_count, self.barriers)
        self.blocks.setdefault(self.owners[name], []).append(block)
        return block.address

    def release(self, op: Op) -> None:
        """Give back the memory of what no later op reads."""
        for name in {self.owners[name] for name in op.inputs()}:
            if self.readers[name][-1] is op:
                for block in self.blocks.pop(name, []):
                    self.pool.give(block, self.barriers)

    def shared(self, name: str, kind: str, make: Callable[[str], Place]) -> Place:
        """A value in another form, made once for all that read it, and whole or private."""
        if (name, kind) not in self.converted:
            self.converted[name, kind] = make(name)
        place = self.converted[name, kind]
        if place.spread not in ("whole", "private"):
            self.barrier()
        return place

    # Calls.

    def row_spread(self) -> Spread:
        """How a kernel of whole rows leaves its output."""
        return "private" if self.private else "split"

    def call(self, kernel: Kernel, arguments: Mapping[str, int | Dynamic]) -> None:
        self.lowered.add(kernel, arguments)

    def call_of(self, kernel: Kernel, arguments: Mapping[str, int | Dynamic]) -> None:
        """Call a kernel with those of the arguments that it takes."""
        self.call(kernel, {slot: arguments[slot] for slot in kernel.slots})

    def barrier(self) -> None:
        """Make all that was written whole."""
        if self.lowered.calls and not self.lowered.calls[-1].barrier:
            self.lowered.calls[-1].barrier = True
            self.barriers += 1
        for place in (*self.places.values(), *self.converted.values()):
            if place.spread != "private":
                place.spread = "whole"

    def read(self, name: str, *also: Spread) -> Place:
        """A value that a kernel reads whole, or as it lies where that is among `also`."""
        place = self.places[name]
        if place.spread not in ("whole", "private", *also):
            self.barrier()
        return place

    def row_count(self, place: Place) -> Dynamic:
        return Dynamic("logit_rows" if place.taken else "rows")

    def row_arguments(self, x: Place, out: Place) -> dict[str, int | Dynamic]:
        """What the kernels of whole rows have in common."""
        return {
            "x": x.address,
            "out": out.address,
            "rows": self.row_count(out),
            "width": x.width,
            "x_stride": x.stride,
            "out_stride": out.stride,
            "private": out.private,
            "x_private": x.private,
        }

    # Weights, tokens.

    def weight_arguments(self, tensor: StoredTensor, tile: int = 0) -> dict[str, int | Dynamic]:
        """Where the weights of the outputs from a tile on are."""
        parts = tensor.parts
        codes = next(name for name in ("planes", "codes", "values") if name in parts)
        named = {"codes": codes, "scales": "scales", "zeros": "zeros"}
        return {
            slot: self.part(tensor, name, tile) if name in parts else 0
            for slot, name in named.items()
        }

    def part(self, tensor: StoredTensor, name: str, tile: int) -> int:
        """Address of an array from a tile on; one that has no tiles is for all of them."""
        array = tensor.parts[name]
        offset = tile * array.strides[0] if tile < len(array) else 0
        return self.memory.part(self.bundle, tensor, name) + offset

    def vector(self, name: str) -> int:
        return self.memory.copy(name, self.tensors[name].parts["values"])

    def bias(self, op: Linear) -> int:
        """The bias, or zeros where there is none."""
        if op.bias is not None:
            return self.vector(op.bias)
        width = -(-self.widths[op.out] // TILE) * TILE
        return self.memory.copy(f"zeros/{width}", np.zeros(width, np.float32))

    @property
    def best_address(self) -> int:
        """Where threads leave their best tokens."""
        return self.memory.address("best tokens", argmax.LINE * self.threads)

    @property
    def tokens_address(self) -> int:
        """Where the tokens of a step are, int32."""
        return self.memory.address(f"tokens/{self.max_rows}", 4 * self.max_rows)
