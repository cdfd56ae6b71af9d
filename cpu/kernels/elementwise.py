"""Kernels that work element by element, on the slices of columns that linear kernels write.

A thread handles the same tiles of 64 columns as in a linear kernel of that width, so that a
value made in slices can be used without a barrier. Rows of values are padded to whole tiles. Each
thread may have copies of its own of the inputs, `a_private` and `b_private` bytes apart.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cpu.codegen import math
from cpu.codegen.language import F32, Code, Value
from cpu.kernels.kernel import Arguments, Kernel, Thread, float_slot
from edge import reference
from edge.graph import Add, Gate, GateFunction, Softcap
from edge.planes import TILE

Floats = NDArray[np.float32]

SLOTS = (
    *("a", "b", "out", "rows", "tiles", "a_stride", "b_stride", "out_stride", "number"),
    *("a_private", "b_private"),
)


def kernel_of(op: Gate | Add | Softcap) -> tuple[Kernel, int]:
    """An op's kernel, of its first and last input, and what its slot `number` must hold."""
    if isinstance(op, Gate):
        return gate_kernel(op.function), 0
    return (add_kernel(), 0) if isinstance(op, Add) else (softcap_kernel(), float_slot(op.cap))


def _sliced(
    code: Code,
    a: Arguments,
    thread: Thread,
    make: Callable[[Value, Value], Value],
    *,
    unary: bool = False,
) -> None:
    first, last = thread.share(a.integer("tiles"))
    kind = F32.of(code.isa.lanes)
    with code.loop(0, a.integer("rows")) as row:
        left, right = (
            code.offset(
                a.pointer(name),
                row * a.integer(f"{name}_stride") + thread.index * a.integer(f"{name}_private"),
            )
            for name in ("a", "b")
        )
        out = code.offset(a.pointer("out"), row * a.integer("out_stride"))
        with code.loop(first * (4 * TILE), last * (4 * TILE), kind.byte_count) as offset:
            x = code.load(kind, left, offset)
            y = x if unary else code.load(kind, right, offset)
            code.store(make(x, y), out, offset)


def add_kernel() -> Kernel:
    """out = a + b."""

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        _sliced(code, a, thread, lambda x, y: x + y)

    return Kernel("add", SLOTS, body)


def add(a: Floats, b: Floats) -> Floats:
    """The twin."""
    return a + b


def gate_kernel(function: GateFunction) -> Kernel:
    """out = function(a) * b."""

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        _sliced(code, a, thread, lambda x, y: GATES[function](x) * y)

    return Kernel(f"gate_{function}", SLOTS, body)


def gate(function: GateFunction, a: Floats, b: Floats) -> Floats:
    """The twin."""
    return reference.GATES[function](a) * b


def softcap_kernel() -> Kernel:
    """out = number * tanh(a / number)."""

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        cap = a.number("number").broadcast(code.isa.lanes)
        _sliced(code, a, thread, lambda x, _: math.tanh(x / cap) * cap, unary=True)

    return Kernel("softcap", SLOTS, body)


def softcap(a: Floats, cap: float) -> Floats:
    """The twin."""
    return np.float32(cap) * np.tanh(a / np.float32(cap))


def _gelu_tanh(x: Value) -> Value:
    inner = (x * x * x * 0.044715 + x) * 0.7978845608028654
    return x * 0.5 * (math.tanh(inner) + 1.0)


def _relu(x: Value) -> Value:
    return x.maximum(0.0)


GATES: dict[GateFunction, Callable[[Value], Value]] = {
    "silu": lambda x: x * math.sigmoid(x),
    "gelu_tanh": _gelu_tanh,
    "gelu": lambda x: x * 0.5 * (math.erf(x * 0.7071067811865476) + 1.0),
    "relu": _relu,
    "relu2": lambda x: _relu(x) * _relu(x),
}
