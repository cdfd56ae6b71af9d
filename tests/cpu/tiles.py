"""A matrix unit in plain vector code, so that its kernels are tested on machines without one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from cpu.codegen.isa import RAISED, Isa, Tiles
from cpu.codegen.language import F32, I8, I32, POINTER, Code, Value

_SIDE, _LINE = 16, 64
_TILE_BYTES = _SIDE * _LINE


def with_tiles(isa: Isa) -> Isa:
    """The instruction set with `edge.codegen.isa.Tiles` in memory."""
    registers: dict[Code, Value] = {}

    def configure(code: Code) -> None:
        with code.builder.goto_entry_block():
            slot = code.builder.alloca(I8.of(8 * _TILE_BYTES).ir)
        registers[code] = Value(code, POINTER, code.builder.bitcast(slot, POINTER.ir))

    def place(code: Code, tile: int) -> Value:
        return code.offset(registers[code], tile * _TILE_BYTES)

    def clear(code: Code, tile: int) -> None:
        with code.loop(0, _TILE_BYTES, _LINE) as line:
            code.store(code.constant(I32.of(_SIDE), 0), place(code, tile), line)

    def load(code: Code, tile: int, pointer: Value, stride: Value) -> None:
        with code.loop(0, _SIDE) as row:
            line = code.load(I32.of(_SIDE), pointer, row * stride)
            code.store(line, place(code, tile), row * _LINE)

    def store(code: Code, tile: int, pointer: Value, stride: Value) -> None:
        with code.loop(0, _SIDE) as row:
            line = code.load(I32.of(_SIDE), place(code, tile), row * _LINE)
            code.store(line, pointer, row * stride)

    def dot(code: Code, c: int, a: int, b: int) -> None:
        with code.loop(0, _SIDE) as row:
            total = code.variable(code.load(F32.of(_SIDE), place(code, c), row * _LINE))
            with code.loop(0, _SIDE) as k:
                pair = code.load(I32, place(code, a), row * _LINE + k * 4).broadcast(_SIDE)
                others = code.load(I32.of(_SIDE), place(code, b), k * _LINE)
                for x, w in zip(_halves(pair), _halves(others), strict=True):
                    total.set(x.fma(w, total.get()))
            code.store(total.get(), place(code, c), row * _LINE)

    tiles = Tiles(configure, lambda code: None, clear, load, dot, store, _raised_codes, _paired)
    return replace(isa, name=f"{isa.name}+tiles", tiles=tiles)


def _halves(pairs: Value) -> list[Value]:
    """The two bfloat16 of each word, as float32."""
    kind = F32.of(pairs.type.lanes)
    return [(pairs << 16).cast(kind), (pairs & -0x10000).cast(kind)]


def _raised_codes(code: Code, planes: Sequence[Value]) -> Iterator[Value]:
    for bit in range(8):
        total = code.constant(I32.of(_SIDE), RAISED)
        for number, plane in enumerate(planes):
            total = total + (((plane.to(I32, unsigned=True) >> bit) & 1) << number)
        yield total.to(F32)


def _paired(code: Code, first: Value, second: Value) -> Value:
    del code
    kind = I32.of(first.type.lanes)
    low, high = (value.cast(kind) + 0x8000 for value in (first, second))
    return (low >> 16) | (high & -0x10000)
