"""The table of kernel calls that a step runs, as lowering makes it: calls, slots, places of values.

How a value lies among the threads is in `values`' first words.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cpu.kernels.kernel import Kernel

Spread = Literal["whole", "sliced", "split", "private"]


@dataclass(frozen=True)
class Dynamic:
    """What a slot that changes from step to step must hold: the step's value called `name`, times
    `stride`, plus `base`.
    """

    name: str
    base: int = 0
    stride: int = 1

    def of(self, value: int) -> int:
        """What the slot must hold for a value of the step's."""
        return self.base + self.stride * value


@dataclass
class Place:
    """Where a value is: memory, bytes from row to row and from a thread's copy to the next."""

    address: int | Dynamic
    width: int
    stride: int
    private: int = 0
    spread: Spread = "whole"
    # the rows that logits are asked for, at the end of the valid ones
    taken: bool = False
    # rounded to 8 bits a row already, so that one scale a row is exact
    one_scale: bool = False


@dataclass(slots=True)
class Call:
    """One kernel call: where its arguments begin, and whether a barrier follows."""

    kernel: Kernel
    first: int
    barrier: bool = False


@dataclass
class Lowered:
    """The calls of a step, which may leave out the last of them.

    `kernels` are those called, by name; `arguments` those of all calls, by slot; `dynamic` which of
    these change from step to step. `body` calls come before the head, and `logits` before what
    picks the best token. `ends` has, for every op of the graph in order, how many calls there are
    up to and with it.
    """

    calls: list[Call] = field(default_factory=list)
    arguments: array[int] = field(default_factory=lambda: array("q"))
    dynamic: dict[Dynamic, list[int]] = field(default_factory=dict)
    kernels: dict[str, Kernel] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    body: int = 0
    logits: int = 0

    def add(self, kernel: Kernel, arguments: Mapping[str, int | Dynamic]) -> None:
        """One call more, with what each of its kernel's slots holds."""
        assert len(arguments) == len(kernel.slots), set(arguments) ^ set(kernel.slots)
        kernel = self.kernels.setdefault(kernel.name, kernel)  # two of the same name are the same
        self.calls.append(Call(kernel, len(self.arguments)))
        for slot in kernel.slots:
            value = arguments[slot]
            if isinstance(value, Dynamic):
                self.dynamic.setdefault(value, []).append(len(self.arguments))
                value = 0
            self.arguments.append(value)
