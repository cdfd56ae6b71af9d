"""The CPU's part of a prefill: float ops, what an NPU is given and makes, and outliers' products.

`NumpyFloats` is the twin of `native.NativeFloats`, and runs where there is no machine code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edge.bundle import Bundle
from edge.graph import Attention, Op
from edge.npu import Activation, Codes
from edge.reference import FUNCTIONS, Step, Values, WeightCache, append, attend
from npu.htp.shadow import Columns, Extracted, products, split


@dataclass(frozen=True)
class Made:
    """What an NPU made: codes [rows, width], to be times the channels' `factors`, plus `added`
    [rows, width], plus the tensor `bias`.
    """

    activation: Activation
    codes: Codes
    factors: Values | None = None
    added: Values | None = None
    bias: str | None = None


class Floats(Protocol):
    """What a prefill has the CPU do. Values are float32 [rows, width]."""

    @property
    def place(self) -> str:
        """What runs it, in words."""
        ...

    def run(self, op: Op, step: Step) -> Values:
        """The value of an op other than attention."""
        ...

    def append(self, op: Attention, step: Step) -> None:
        """Put the step's keys and values into the cache."""
        ...

    def attend(self, op: Attention, step: Step) -> Values:
        """Attention to what the cache holds, where the step's own keys and values are already."""
        ...

    def split(
        self, activation: Activation, x: Values, factors: Values | None
    ) -> tuple[Codes, Extracted]:
        """Codes of x for the NPU, clipped, and what was cut off; see `shadow.split`."""
        ...

    def join(self, made: Made) -> Values:
        """Values of what the NPU made."""
        ...

    def products(self, found: Extracted, columns: Columns, rows: int) -> Values:
        """What outliers add to `rows` rows of a projection; see `shadow.products`."""
        ...


class NumpyFloats:
    """See `Floats`. `reason` is why no machine code does it."""

    def __init__(self, bundle: Bundle, reason: str) -> None:
        self.place = f"NumPy ({reason})"
        self._weights = WeightCache(bundle)

    def run(self, op: Op, step: Step) -> Values:
        return FUNCTIONS[type(op)](op, step, self._weights)

    def append(self, op: Attention, step: Step) -> None:
        append(op, step)

    def attend(self, op: Attention, step: Step) -> Values:
        return attend(op, step)

    def split(
        self, activation: Activation, x: Values, factors: Values | None
    ) -> tuple[Codes, Extracted]:
        return split(activation, x, factors)

    def join(self, made: Made) -> Values:
        values = made.activation.decode(made.codes)
        if made.factors is not None:
            values *= made.factors
        if made.added is not None:
            values += made.added
        if made.bias is not None:
            values += self._weights.dense(made.bias)
        return values

    def products(self, found: Extracted, columns: Columns, rows: int) -> Values:
        return products(found, columns, rows)
