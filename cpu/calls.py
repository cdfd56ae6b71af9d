"""The table of kernel calls that a step runs, as lowering makes it: calls, slots, places of values.

How a value lies among the threads is in `values`' first words.
"""

from __future__ import annotations

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


@dataclass
class Call:
    """One kernel call: arguments by slot, and whether a barrier follows."""

    kernel: Kernel
    arguments: dict[str, int]
    barrier: bool = False


@dataclass
class Lowered:
    """The calls of a step, which may leave out the last of them.

    `body` come before the head, and `logits` before what picks the best token. `ends` has, for
    every op of the graph in order, how many calls there are up to and with it.
    """

    calls: list[Call] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    body: int = 0
    logits: int = 0
    dynamic: list[tuple[int, str, Dynamic]] = field(default_factory=list)
