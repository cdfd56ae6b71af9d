"""What a matrix unit computes of many rows, and what leaves rows as it takes them.

It takes bfloat16. A norm or a gate that nothing else reads is made in bfloat16 at once, and a sum
with a projection is where the projection begins: neither is ever written as values of its own.
"""

from __future__ import annotations

from cpu.calls import Dynamic, Place, Spread
from cpu.kernels import gemm, tile_rows
from cpu.memory import Memory
from cpu.values import Values
from edge.bundle import Bundle
from edge.graph import Add, Gate, Linear, Norm
from edge.planes import TILE

# The kind of a value in another form that rows in bfloat16 are.
_BFLOAT16 = "bfloat16"


class MatrixUnit(Values):
    """Lowers what goes to a matrix unit, where there is one (`matrix_unit`)."""

    def __init__(
        self, bundle: Bundle, memory: Memory, threads: int, max_rows: int, *, matrix_unit: bool
    ) -> None:
        super().__init__(bundle, memory, threads, max_rows)
        self.matrix_unit = matrix_unit

    def in_bfloat16(self, op: Linear, x: Place) -> bool:
        """Whether a linear takes x, of many rows, to the matrix unit."""
        return self.tensors[op.weight].form.quantized and self.matrix_unit and not x.taken

    def alone_in_bfloat16(self, op: Norm | Gate, x: Place) -> bool:
        """Whether all that is read of an op's rows, as many as x has, is on the matrix unit."""
        return all(
            isinstance(reader, Linear) and self.in_bfloat16(reader, x)
            for reader in self.readers.get(op.out, [])
        )

    def norm_bfloat16(self, op: Norm, x: Place, extra: dict[str, int]) -> None:
        """A norm of whole rows that is nothing but rows in bfloat16."""
        out = self.places[op.out] = self.bfloat16_place(op.out, x.width, "split")
        self.call(tile_rows.norm_bfloat16_kernel(), self.row_arguments(x, out) | extra)

    def gate_bfloat16(self, op: Gate, left: Place, right: Place) -> None:
        """A gated value that is nothing but rows in bfloat16."""
        out = self.places[op.out] = self.bfloat16_place(op.out, left.width, "sliced")
        arguments: dict[str, int | Dynamic] = {
            "a": left.address,
            "b": right.address,
            "out": out.address,
            "rows": self.row_count(out),
            "width": out.width,
            "tiles": -(-out.width // TILE),
            "a_stride": left.stride,
            "b_stride": right.stride,
        }
        self.call(tile_rows.gate_bfloat16_kernel(op.function), arguments)

    def matrix_linear(self, op: Linear) -> None:
        """A projection; where a sum alone reads it, that sum."""
        x = self.shared(op.x, _BFLOAT16, self.bfloat16)
        if total := self.sum_alone(op):
            # a barrier is before there is a place for what is yet to be written
            start = self.read(next(name for name in total.inputs() if name != op.out), "sliced")
            out = self.place(total.out, "sliced")
        else:
            start, out = Place(self.bias(op), x.width, stride=0), self.place(op.out, "sliced")
        form = self.tensors[op.weight].form
        panels_bytes = gemm.panels_bytes(self.max_rows) * self.threads
        arguments: dict[str, int | Dynamic] = {
            "x": x.address,
            "start": start.address,
            "out": out.address,
            "panels": self.memory.address("panels", panels_bytes),
            "rows": Dynamic("rows"),
            "width": x.width,
            "tiles": -(-out.width // TILE),
            "start_stride": start.stride,
            "out_stride": out.stride,
        }
        arguments |= self.weight_arguments(self.tensors[op.weight])
        self.call(gemm.gemm_kernel(form), arguments)

    def sum_alone(self, op: Linear) -> Add | None:
        """The sum that alone reads a projection without bias, if its other term is there."""
        reader, *others = self.readers[op.out]
        if others or not isinstance(reader, Add) or op.bias is not None:
            return None
        known = [name for name in reader.inputs() if name in self.places]
        return reader if len(known) == 1 else None

    def bfloat16(self, name: str) -> Place:
        """A value as rows in bfloat16."""
        x = self.read(name)
        out = self.bfloat16_place(name, x.width, "split")
        self.call(tile_rows.bfloat16_kernel(), self.row_arguments(x, out))
        return out

    def bfloat16_place(self, name: str, width: int, spread: Spread) -> Place:
        """Make a place for a value's rows in bfloat16."""
        address = self.take(name, tile_rows.rows_bytes(self.max_rows, width))
        out = self.converted[name, _BFLOAT16] = Place(address, width, stride=0, spread=spread)
        return out
