"""Loads and stores of a vector's first lanes alone: memory behind them is not touched."""

from __future__ import annotations

from cpu.codegen.language import I32, Code, Type, Value


def load_first(pointer: Value, kind: Type, byte_count: Value, count: Value) -> Value:
    """The first `count` lanes at a pointer plus an offset; the others are zeros."""
    code, given = pointer.code, _given(pointer, kind, byte_count, count)
    return code.intrinsic(_named("load", kind), kind, *given, code.constant(kind, 0))


def store_first(pointer: Value, value: Value, byte_count: Value, count: Value) -> None:
    """Store the first `count` lanes at a pointer plus an offset."""
    given = _given(pointer, value.type, byte_count, count)
    pointer.code.intrinsic(_named("store", value.type), None, value, *given)


def _named(operation: str, kind: Type) -> str:
    return f"llvm.masked.{operation}.v{kind.lanes}{kind.element}.p0"


def _given(pointer: Value, kind: Type, byte_count: Value, count: Value) -> list[Value]:
    """Address, alignment and lanes, as LLVM takes them."""
    code: Code = pointer.code
    order = code.constant(I32.of(kind.lanes), list(range(kind.lanes)))
    inside = order < count.to(I32).broadcast(kind.lanes)
    return [code.offset(pointer, byte_count), code.constant(I32, 1), inside]
