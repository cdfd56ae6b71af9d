"""What a kernel is, and how it reads its arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cpu.codegen.language import F32, I32, I64, POINTER, Code, Type, Value, Variable

if TYPE_CHECKING:
    from cpu.codegen.emit import Module

# Sums that a loop adds up side by side: one addition waits 4 cycles for the one before.
CHAINS = 4


class Arguments:
    """The arguments of a running kernel: 64-bit slots by name.

    Each is loaded once, where the function begins: what a kernel stores might be its arguments for
    all that the compiler knows, so that addresses would be computed anew behind every store.
    """

    def __init__(self, code: Code, base: Value, slots: tuple[str, ...]) -> None:
        self._code = code
        self._base = base
        self._slots = slots
        self._loaded: dict[str, Value] = {}

    def _load(self, kind: Type, name: str) -> Value:
        if name not in self._loaded:
            with self._code.builder.goto_entry_block():
                value = self._code.load(kind, self._base, 8 * self._slots.index(name))
            self._loaded[name] = value
        assert self._loaded[name].type == kind, name
        return self._loaded[name]

    def pointer(self, name: str) -> Value:
        return self._load(POINTER, name)

    def integer(self, name: str) -> Value:
        return self._load(I64, name)

    def number(self, name: str) -> Value:
        """A float32 in the low half of a slot."""
        return self._load(F32, name)


@dataclass(frozen=True)
class Thread:
    """Which of the threads this is."""

    index: Value
    count: Value

    def share(self, total: Value) -> tuple[Value, Value]:
        """This thread's contiguous part of `total` pieces of work, as first and one past last."""
        return (total * self.index) // self.count, (total * (self.index + 1)) // self.count


Body = Callable[[Code, Arguments, Thread], None]


@dataclass(frozen=True)
class Kernel:
    """A kernel by name. Two of the same name are the same."""

    name: str
    slots: tuple[str, ...]
    body: Body

    def emit(self, module: Module) -> None:
        """Write the kernel's function into a module."""

        def write(code: Code, base: Value, index: Value, count: Value) -> None:
            self.body(code, Arguments(code, base, self.slots), Thread(index, count))

        module.function(self.name, [POINTER, I64, I64], write)


def minimum(a: Value, b: Value) -> Value:
    """Smaller of two scalars."""
    return (a < b).select(a, b)


def maximum(a: Value, b: Value) -> Value:
    """Larger of two scalars."""
    return (a < b).select(b, a)


def float_slot(number: float) -> int:
    """A float32 in the low half of a slot."""
    return int(np.array([number, 0], np.float32).view(np.int64)[0])


def joined(sums: Sequence[Variable]) -> Value:
    """The sum of CHAINS sums."""
    a, b, c, d = (chain.get() for chain in sums)
    return (a + b) + (c + d)


def totals(sums: Sequence[Value]) -> Value:
    """The sum of each vector's lanes, in the lanes of one; of a power of two of vectors."""
    vectors, size = list(sums), sums[0].type.lanes
    while size > 1:  # of each vector so many lanes in a row are left
        pairs = zip(vectors[::2], vectors[1::2], strict=False)  # the last one alone has none
        vectors = [_folded(a, b, size) for a, b in pairs] or [_folded(vectors[0], None, size)]
        size //= 2
    return vectors[0]


def _folded(a: Value, b: Value | None, size: int) -> Value:
    """Of every `size` lanes of a, then of b, the first half added to the second."""
    lanes = a.type.lanes * (1 if b is None else 2)
    first = [lane for lane in range(lanes) if lane % size < size // 2]
    return a.shuffle(first, b) + a.shuffle([lane + size // 2 for lane in first], b)


__all__ = [
    "CHAINS",
    "I32",
    "Arguments",
    "Body",
    "Kernel",
    "Thread",
    "float_slot",
    "joined",
    "maximum",
    "minimum",
    "totals",
]
