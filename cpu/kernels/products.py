"""Accumulators of a block's dot products: int32 from the start, or int16 that are widened.

They are for some of a layout's slots and for both terms of the activations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cpu.codegen.isa import DotProduct
from cpu.codegen.language import Code, Value, Variable
from cpu.kernels.activations import TERMS

# Accumulators by term, then by slot; or by slot alone, of what both terms come to (`joined`).
Terms = list[list[Variable]]


def joined(terms: Terms) -> list[Value]:
    """By slot, 256 * high + low."""
    if len(terms) == 1:
        return [total.get() for total in terms[0]]
    return [(high.get() << 8) + low.get() for high, low in zip(*terms, strict=True)]


class Products(Protocol):
    """What a loop over the steps of a block adds its products to."""

    def add(self, term: int, place: int, codes: Value, activations: Value) -> None:
        """A vector's products with a term, to the accumulator at `place` among the slots."""

    def turn(self) -> None:
        """At the end of each turn of the loop."""

    def terms(self) -> Terms:
        """What all come to, behind the loop."""


class WideProducts:
    """Accumulators of int32, which are `terms`."""

    def __init__(self, code: Code, dot: DotProduct, terms: Terms) -> None:
        self._code, self._dot, self._terms = code, dot, terms

    def add(self, term: int, place: int, codes: Value, activations: Value) -> None:
        held = self._terms[term][place]
        held.set(self._dot(self._code, held.get(), codes, activations))

    def turn(self) -> None:
        """There is nothing to widen."""

    def terms(self) -> Terms:
        return self._terms


class NarrowProducts:
    """Accumulators of int16, widened behind the loop where `once`, else after each turn.

    `start` makes what they are added to, the last of which is the low term's.
    """

    def __init__(
        self, code: Code, start: Callable[[], Terms], slot_count: int, *, once: bool
    ) -> None:
        self._code, self._start, self._once = code, start, once
        self._zero = code.constant(code.isa.dot_sums, 0)
        self._sums = [[code.variable(self._zero) for _ in range(slot_count)] for _ in range(TERMS)]
        self._totals = [] if once else start()[-1]

    def add(self, term: int, place: int, codes: Value, activations: Value) -> None:
        held = self._sums[term][place]
        held.set(self._code.isa.dot(self._code, held.get(), codes, activations))

    def turn(self) -> None:
        if not self._once:
            self._widen()

    def terms(self) -> Terms:
        if self._once:  # begun here, the totals take no registers in the loop
            self._totals = self._start()[-1]
            self._widen()
        return [self._totals]

    def _widen(self) -> None:
        widening = self._code.isa.widening
        assert widening is not None
        for total, high, low in zip(self._totals, *self._sums, strict=True):
            total.set(widening.widen(self._code, total.get(), high.get(), low.get()))
            high.set(self._zero)
            low.set(self._zero)
