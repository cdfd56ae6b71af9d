"""Kernels that need whole rows: RMS norm and rotary embedding.

Rows are split among the threads, or made by every thread in a copy of its own (`private`, the
bytes from one copy to the next), which for a row or two is cheaper than a barrier. `x_private` is
the same of the input: 0 where all threads read one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from cpu.codegen.language import F32, I32, I64, Code, Type, Value
from cpu.kernels.kernel import CHAINS, Arguments, Kernel, Thread, joined, minimum

Floats = NDArray[np.float32]


@contextlib.contextmanager
def own_rows(code: Code, a: Arguments, thread: Thread) -> Iterator[tuple[Value, Value, Value]]:
    """Loop over this thread's rows: the row, where x is, where out goes."""
    private, rows = a.integer("private"), a.integer("rows")
    target = code.offset(a.pointer("out"), private * thread.index)
    first, last = thread.share(rows)
    alone = private.equals(0)
    first, last = alone.select(first, 0), alone.select(last, rows)
    source = code.offset(a.pointer("x"), a.integer("x_private") * thread.index)
    with code.loop(first, last) as row:
        x = code.offset(source, row * a.integer("x_stride"))
        yield row, x, code.offset(target, row * a.integer("out_stride"))


def norm_kernel() -> Kernel:
    """out = x / sqrt(mean(x^2) + eps) * weight, for every run of `size` elements of a row.

    A run's last vector is written whole: what is past its end is the next run, written later, or
    the row's padding.
    """

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        size = a.integer("size")
        with (
            own_rows(code, a, thread) as (_, x, out),
            code.loop(0, a.integer("width"), size) as start,
        ):
            _norm_run(code, a, code.offset(x, start * 4), code.offset(out, start * 4), size)

    slots = (
        *("x", "weight", "out", "rows", "width", "size", "x_stride", "out_stride", "eps"),
        *("private", "x_private"),
    )
    return Kernel("norm", slots, body)


def _norm_run(code: Code, a: Arguments, x: Value, out: Value, size: Value) -> None:
    kind = F32.of(code.isa.lanes)
    scale = inverse_rms(code, a, x, size).broadcast(kind.lanes)
    with code.loop(0, size, kind.lanes) as i:
        weight = code.load(kind, a.pointer("weight"), i * 4)
        code.store(code.load(kind, x, i * 4) * scale * weight, out, i * 4)


def inverse_rms(code: Code, a: Arguments, x: Value, size: Value) -> Value:
    """1 / sqrt(mean(x^2) + eps) of `size` elements."""
    lanes = code.isa.lanes
    kind = F32.of(lanes)
    order = code.constant(I32.of(lanes), list(range(lanes)))
    squares = [code.variable(code.constant(kind, 0.0)) for _ in range(CHAINS)]
    whole = size - size % (CHAINS * lanes)
    with code.loop(0, whole, CHAINS * lanes) as i:
        for number, chain in enumerate(squares):
            values = code.load(kind, x, (i + number * lanes) * 4)
            chain.set(values.fma(values, chain.get()))
    with code.loop(whole, size, lanes) as i:
        inside = order < minimum(size - i, code.constant(I64, lanes)).to(I32).broadcast(lanes)
        values = inside.select(code.load(kind, x, i * 4), 0.0)
        squares[0].set(values.fma(values, squares[0].get()))
    mean = joined(squares).total() / size.to(F32)
    return code.constant(F32, 1.0) / (mean + a.number("eps")).sqrt()


def norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """The twin."""
    runs = x.reshape(len(x), -1, len(weight))
    square = np.mean(runs * runs, axis=-1, keepdims=True)
    made: Floats = runs / np.sqrt(square + np.float32(eps)) * weight
    return made.reshape(x.shape)


def int8_kernel() -> Kernel:
    """out = x rounded to 255 levels of the row's largest magnitude."""

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        kind = F32.of(code.isa.lanes)
        with own_rows(code, a, thread) as (_, x, out):
            width = a.integer("width")
            peak = row_peak(code, x, width).maximum(1e-5)
            scale = (code.constant(F32, 127.0) / peak).broadcast(kind.lanes)
            with code.loop(0, width, kind.lanes) as i:
                values = (code.load(kind, x, i * 4) * scale).round()
                code.store(values.maximum(-128.0).minimum(127.0) / scale, out, i * 4)

    slots = ("x", "out", "rows", "width", "x_stride", "out_stride", "private", "x_private")
    return Kernel("int8", slots, body)


def row_peak(code: Code, x: Value, width: Value) -> Value:
    """Largest magnitude of `width` values."""
    return peak_of(code, lambda kind, i: code.load(kind, x, i * 4), width)


def peak_of(code: Code, values_at: Callable[[Type, Value], Value], width: Value) -> Value:
    """Largest magnitude of `width` values, which `values_at` makes by vectors."""
    kind = F32.of(code.isa.lanes)
    order = code.constant(I32.of(kind.lanes), list(range(kind.lanes)))
    peak = code.variable(code.constant(kind, 0.0))
    with code.loop(0, width, kind.lanes) as i:
        left = minimum(width - i, code.constant(I64, kind.lanes)).to(I32)
        values = (order < left.broadcast(kind.lanes)).select(values_at(kind, i), 0.0)
        peak.set(peak.get().maximum(values.magnitude()))
    return peak.get().largest()


def int8(x: Floats) -> Floats:
    """The twin."""
    scale = np.float32(127) / np.maximum(np.abs(x).max(axis=1, keepdims=True), np.float32(1e-5))
    made: Floats = np.clip(np.rint(x * scale), -128, 127) / scale
    return made


def rope_kernel() -> Kernel:
    """Turn the first 2 * half elements of every head by the angles of the row's position.

    `cos` and `sin` are tables [positions, half padded to `table_stride` bytes], already scaled.
    """

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        head_dim, half = a.integer("head_dim"), a.integer("half")
        with own_rows(code, a, thread) as (row, x, out):
            place = (a.integer("position") + row) * a.integer("table_stride")
            cos, sin = (code.offset(a.pointer(name), place) for name in ("cos", "sin"))
            with code.loop(0, a.integer("width"), head_dim) as start:
                _turn(
                    code, (cos, sin), code.offset(x, start * 4), code.offset(out, start * 4), half
                )
                _copy(code, x, out, start + half * 2, start + head_dim)

    slots = (
        *("x", "out", "cos", "sin", "rows", "width", "head_dim", "half"),
        *("position", "table_stride", "x_stride", "out_stride", "private", "x_private"),
    )
    return Kernel("rope", slots, body)


def _turn(code: Code, angles: tuple[Value, Value], x: Value, out: Value, half: Value) -> None:
    """One head, element i with element i + half; scalar where a vector would not fit."""
    lanes = code.isa.lanes
    vectors = half - half % lanes
    for kind, first, last in (
        (F32.of(lanes), code.constant(I64, 0), vectors),
        (F32, vectors, half),
    ):
        with code.loop(first, last, kind.lanes) as i:
            cos, sin = (code.load(kind, angle, i * 4) for angle in angles)
            low, high = code.load(kind, x, i * 4), code.load(kind, x, (i + half) * 4)
            code.store(low * cos - high * sin, out, i * 4)
            code.store(high * cos + low * sin, out, (i + half) * 4)


def _copy(code: Code, x: Value, out: Value, first: Value, last: Value) -> None:
    with code.loop(first, last) as i:
        code.store(code.load(F32, x, i * 4), out, i * 4)


def rope(x: Floats, cos: Floats, sin: Floats, head_dim: int) -> Floats:
    """The twin; cos and sin are [rows, half]."""
    half = cos.shape[1]
    heads = x.reshape(len(x), -1, head_dim)
    low, high, rest = np.split(heads, (half, 2 * half), axis=2)
    c, s = cos[:, None], sin[:, None]
    made = np.concatenate([low * c - high * s, high * c + low * s, rest], axis=2)
    return made.reshape(x.shape)
