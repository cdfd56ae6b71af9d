"""The vector language: typed values, pointers, loops and variables over llvmlite's IR builder.

A `Value` is a scalar or a vector of `lanes`; operators work lane by lane. Integers are signed
where it matters (conversions, comparisons, right shifts) unless a method says otherwise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llvmlite import ir

    from cpu.codegen.isa import Isa, VectorFloats
else:

    class _Builder:
        """llvmlite's `ir`, imported when code is written: who runs code names kernels alone."""

        def __getattr__(self, name: str) -> Any:
            from llvmlite import ir

            found = getattr(ir, name)
            setattr(self, name, found)
            return found

    ir = _Builder()


@cache
def _element(name: str) -> ir.Type:
    """An element type as LLVM's."""
    if name == "bf16":
        return _bfloat()
    if name == "ptr":
        return ir.IntType(8).as_pointer()
    floats = {"f16": ir.HalfType, "f32": ir.FloatType}
    return floats[name]() if name in floats else ir.IntType(int(name[1:]))


def _bfloat() -> ir.Type:
    """bfloat16, which llvmlite has no class for."""

    class BFloat(ir.Type):  # type: ignore[misc]
        null = "0.0"

        def _to_string(self) -> str:
            return "bfloat"

        def __eq__(self, other: object) -> bool:
            return isinstance(other, BFloat)

        def __hash__(self) -> int:
            return hash(BFloat)

    return BFloat()


_BYTES = {"i8": 1, "i16": 2, "i32": 4, "i64": 8, "f16": 2, "bf16": 2, "f32": 4, "ptr": 8}


@dataclass(frozen=True)
class Type:
    """An element type and how many of it: 1 lane is a scalar."""

    element: str
    lanes: int = 1

    @property
    def ir(self) -> ir.Type:
        element = _element(self.element)
        return element if self.lanes == 1 else ir.VectorType(element, self.lanes)

    @property
    def floating(self) -> bool:
        return self.element in ("f16", "bf16", "f32")

    @property
    def byte_count(self) -> int:
        return _BYTES[self.element] * self.lanes

    def of(self, lanes: int) -> Type:
        """The vector type of this element."""
        return Type(self.element, lanes)


I1, I8, I16, I32, I64 = (Type(name) for name in ("i1", "i8", "i16", "i32", "i64"))
F16, BF16, F32, POINTER = (Type(name) for name in ("f16", "bf16", "f32", "ptr"))


class Value:
    """A value in a function being written."""

    def __init__(self, code: Code, kind: Type, value: Any) -> None:
        self.code = code
        self.type = kind
        self.ir = value

    def _floats(self, kind: Type) -> VectorFloats | None:
        """How this instruction set works on whole vectors of `kind`, where it needs to be told."""
        whole = kind == F32.of(self.code.isa.lanes) and kind.lanes > 1
        return self.code.isa.floats if whole else None

    def _binary(self, other: Value | int | float, floating: str, integer: str) -> Value:
        right = self.code.like(self, other)
        name = floating if self.type.floating else integer
        if not name:
            raise TypeError(f"no such operation on {self.type}")
        return Value(self.code, self.type, getattr(self.code.builder, name)(self.ir, right.ir))

    def __add__(self, other: Value | int | float) -> Value:
        return self._binary(other, "fadd", "add")

    def __sub__(self, other: Value | int | float) -> Value:
        return self._binary(other, "fsub", "sub")

    def __mul__(self, other: Value | int | float) -> Value:
        return self._binary(other, "fmul", "mul")

    def __truediv__(self, other: Value | int | float) -> Value:
        if floats := self._floats(self.type):
            return floats.divide(self, self.code.like(self, other))
        return self._binary(other, "fdiv", "")

    def __floordiv__(self, other: Value | int | float) -> Value:
        """Unsigned integer division."""
        return self._binary(other, "", "udiv")

    def __mod__(self, other: Value | int | float) -> Value:
        return self._binary(other, "", "urem")

    def __and__(self, other: Value | int | float) -> Value:
        return self._binary(other, "", "and_")

    def __or__(self, other: Value | int | float) -> Value:
        return self._binary(other, "", "or_")

    def __xor__(self, other: Value | int | float) -> Value:
        return self._binary(other, "", "xor")

    def __lshift__(self, other: Value | int | float) -> Value:
        return self._binary(other, "", "shl")

    def __rshift__(self, other: Value | int | float) -> Value:
        """Logical shift."""
        return self._binary(other, "", "lshr")

    def signed_shift(self, count: Value | int) -> Value:
        """Shifted right with the sign kept: division by 2^count, rounded down."""
        return self._binary(count, "", "ashr")

    def __neg__(self) -> Value:
        return self.code.like(self, 0) - self

    def _compare(self, operator: str, other: Value | int | float) -> Value:
        right = self.code.like(self, other)
        builder = self.code.builder
        compare = builder.fcmp_ordered if self.type.floating else builder.icmp_signed
        return Value(self.code, I1.of(self.type.lanes), compare(operator, self.ir, right.ir))

    def __lt__(self, other: Value | int | float) -> Value:
        return self._compare("<", other)

    def __le__(self, other: Value | int | float) -> Value:
        return self._compare("<=", other)

    def __gt__(self, other: Value | int | float) -> Value:
        return self._compare(">", other)

    def __ge__(self, other: Value | int | float) -> Value:
        return self._compare(">=", other)

    def equals(self, other: Value | int | float) -> Value:
        """Lane-wise equality."""
        return self._compare("==", other)

    def is_number(self) -> Value:
        """Whether a float is not NaN."""
        if self._floats(self.type):  # which may compare vectors for equality by their bits
            return (self.cast(I32.of(self.type.lanes)) & 0x7FFFFFFF) <= 0x7F800000
        return self.equals(self)

    def select(self, yes: Value, no: Value | int | float) -> Value:
        """`yes` where this condition holds, else `no`."""
        chosen = self.code.builder.select(self.ir, yes.ir, self.code.like(yes, no).ir)
        return Value(self.code, yes.type, chosen)

    def minimum(self, other: Value | int | float) -> Value:
        right = self.code.like(self, other)
        return (self < right).select(self, right)

    def maximum(self, other: Value | int | float) -> Value:
        right = self.code.like(self, other)
        return (self > right).select(self, right)

    def to(self, element: Type, *, unsigned: bool = False) -> Value:
        """Converted to another element type, lane by lane; float to integer truncates."""
        kind = element.of(self.type.lanes)
        if kind == self.type:
            return self
        builder, source = self.code.builder, self.type
        if kind.element == "i32" and not unsigned and (floats := self._floats(source)):
            return floats.to_words(self)
        if source.element == "i32" and not unsigned and (floats := self._floats(kind)):
            return floats.from_words(self)
        if source.floating and kind.floating:
            name = "fpext" if kind.byte_count > source.byte_count else "fptrunc"
        elif source.floating:
            name = "fptoui" if unsigned else "fptosi"
        elif kind.floating:
            name = "uitofp" if unsigned else "sitofp"
        elif source.element == "i1" or kind.byte_count > source.byte_count:
            name = "zext" if unsigned else "sext"
        else:
            name = "trunc"
        return Value(self.code, kind, getattr(builder, name)(self.ir, kind.ir))

    def cast(self, kind: Type) -> Value:
        """The same bits as another type of the same size."""
        return Value(self.code, kind, self.code.builder.bitcast(self.ir, kind.ir))

    def shuffle(self, lanes: Sequence[int], other: Value | None = None) -> Value:
        """Lanes of this value, counted on into `other`, in the order given."""
        right = self.ir if other is None else other.ir
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes))
        made = self.code.builder.shuffle_vector(self.ir, right, mask)
        return Value(self.code, self.type.of(len(lanes)), made)

    def lane(self, index: int) -> Value:
        """One lane as a scalar."""
        taken = self.code.builder.extract_element(self.ir, ir.Constant(ir.IntType(32), index))
        return Value(self.code, self.type.of(1), taken)

    def broadcast(self, lanes: int) -> Value:
        """A scalar in every lane."""
        if lanes == 1:
            return self
        kind = self.type.of(lanes)
        zero = ir.Constant(ir.IntType(32), 0)
        first = self.code.builder.insert_element(ir.Constant(kind.ir, ir.Undefined), self.ir, zero)
        mask = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        made = self.code.builder.shuffle_vector(first, first, mask)
        return Value(self.code, kind, made)

    def total(self) -> Value:
        """Sum of the lanes, by halves."""
        return self._fold(lambda a, b: a + b)

    def largest(self) -> Value:
        """Largest lane."""
        return self._fold(lambda a, b: a.maximum(b))

    def smallest(self) -> Value:
        """Smallest lane."""
        return self._fold(lambda a, b: a.minimum(b))

    def _fold(self, combine: Callable[[Value, Value], Value]) -> Value:
        if self.code.isa.floats and self.type.lanes == self.code.isa.lanes:
            return self.code.isa.floats.fold(self, combine)
        value = self
        while value.type.lanes > 1:
            half = value.type.lanes // 2
            low, high = value.shuffle(range(half)), value.shuffle(range(half, 2 * half))
            value = combine(low, high)
        return value if value.type.lanes == 1 and self.type.lanes == 1 else _scalar(value)

    def fma(self, factor: Value, addend: Value) -> Value:
        """self * factor + addend, rounded once where there is an instruction for it."""
        if floats := self._floats(self.type):
            return floats.multiply_add(self, factor, addend)
        return self.code.intrinsic("llvm.fma", self.type, self, factor, addend, overload=self.type)

    def sqrt(self) -> Value:
        return self.code.intrinsic("llvm.sqrt", self.type, self, overload=self.type)

    def magnitude(self) -> Value:
        return self.code.intrinsic("llvm.fabs", self.type, self, overload=self.type)

    def round(self) -> Value:
        """Nearest whole number, ties to even, still floating."""
        if floats := self._floats(self.type):
            return floats.round(self)
        return self.code.intrinsic("llvm.rint", self.type, self, overload=self.type)


def _scalar(value: Value) -> Value:
    if isinstance(value.ir.type, ir.VectorType):
        zero = ir.Constant(ir.IntType(32), 0)
        taken = value.code.builder.extract_element(value.ir, zero)
        return Value(value.code, value.type, taken)
    return value


class Variable:
    """A value that changes, kept in a register by the optimizer."""

    def __init__(self, code: Code, start: Value) -> None:
        self._code = code
        self._type = start.type
        with code.builder.goto_entry_block():
            self._slot = code.builder.alloca(start.type.ir)
        self.set(start)

    def get(self) -> Value:
        return Value(self._code, self._type, self._code.builder.load(self._slot))

    def set(self, value: Value) -> None:
        assert value.type == self._type, (value.type, self._type)
        self._code.builder.store(value.ir, self._slot)


class Code:
    """A function being written for an instruction set."""

    def __init__(self, module: ir.Module, isa: Isa, function: ir.Function) -> None:
        self.module = module
        self.isa = isa
        self.function = function
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))

    # Constants and memory.

    def constant(self, kind: Type, value: int | float | Sequence[int] | Sequence[float]) -> Value:
        """A scalar, a vector of equal lanes, or a vector of the lanes given."""
        if kind.lanes > 1 and not isinstance(value, Sequence):
            value = [value] * kind.lanes
        if kind.lanes == 1 and isinstance(value, Sequence):
            (value,) = value
        if isinstance(value, Sequence):
            return Value(self, kind, ir.Constant(kind.ir, list(value)))
        number = float(value) if kind.floating else int(value)
        return Value(self, kind, ir.Constant(kind.ir, number))

    def like(self, value: Value, other: Value | int | float) -> Value:
        """`other` as a value of the same type: a number becomes a constant, a scalar is spread."""
        if not isinstance(other, Value):
            return self.constant(value.type, other)
        if other.type.lanes == 1 and value.type.lanes > 1:
            return other.broadcast(value.type.lanes)
        assert other.type == value.type, (other.type, value.type)
        return other

    def variable(self, start: Value) -> Variable:
        return Variable(self, start)

    def offset(self, pointer: Value, byte_count: Value | int) -> Value:
        """A pointer `byte_count` further."""
        step = byte_count if isinstance(byte_count, Value) else self.constant(I64, byte_count)
        return Value(self, POINTER, self.builder.gep(pointer.ir, [step.to(I64).ir]))

    def load(
        self, kind: Type, pointer: Value, byte_count: Value | int = 0, align: int | None = None
    ) -> Value:
        """Load from a pointer plus an offset, aligned as promised, or as `Isa.aligned` says."""
        address = self.offset(pointer, byte_count)
        typed = self.builder.bitcast(address.ir, kind.ir.as_pointer())
        return Value(self, kind, self.builder.load(typed, align=align or self._alignment(kind)))

    def load_floats(self, kind: Type, pointer: Value, byte_count: Value | int = 0) -> Value:
        """Load lanes of a type and convert them to float32."""
        floats = self.isa.floats
        if floats is not None and kind.element == "i8" and kind.lanes > 1:
            return floats.load_bytes(self, pointer, byte_count)
        return self.load(kind, pointer, byte_count).to(F32)

    def store(
        self,
        value: Value,
        pointer: Value,
        byte_count: Value | int = 0,
        align: int | None = None,
    ) -> None:
        """Store to a pointer plus an offset, aligned as for `load`."""
        address = self.offset(pointer, byte_count)
        typed = self.builder.bitcast(address.ir, value.type.ir.as_pointer())
        self.builder.store(value.ir, typed, align=align or self._alignment(value.type))

    def _alignment(self, kind: Type) -> int:
        return kind.byte_count if self.isa.aligned and kind.lanes == 1 else 1

    def prefetch(self, pointer: Value, byte_count: Value | int, *, keep: bool = True) -> None:
        """Ask for the line at a pointer plus an offset; past the end of memory it does nothing.

        A line that is not to be kept is used once: outer caches may do without it.
        """
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [_element("ptr"), word, word, word])
        settings = [ir.Constant(word, number) for number in (0, 3 if keep else 0, 1)]
        address = self.offset(pointer, byte_count).ir
        self.builder.call(self.declare("llvm.prefetch.p0", kind), [address, *settings])

    def atomic_add(self, pointer: Value, byte_count: int, amount: int) -> Value:
        """Add to an I64 that other threads use; returns what it was. Orders all memory."""
        address = self.builder.bitcast(self.offset(pointer, byte_count).ir, I64.ir.as_pointer())
        number = ir.Constant(I64.ir, amount)
        return Value(self, I64, self.builder.atomic_rmw("add", address, number, "seq_cst"))

    def atomic_load(self, pointer: Value, byte_count: int) -> Value:
        """Read an I64 that other threads write; what they wrote before it is visible after."""
        address = self.builder.bitcast(self.offset(pointer, byte_count).ir, I64.ir.as_pointer())
        return Value(self, I64, self.builder.load_atomic(address, "acquire", 8))

    def atomic_set(self, pointer: Value, byte_count: int, number: int) -> None:
        """Write an I64 that other threads use; what was written before it is visible first."""
        address = self.builder.bitcast(self.offset(pointer, byte_count).ir, I64.ir.as_pointer())
        self.builder.store_atomic(ir.Constant(I64.ir, number), address, "release", 8)

    def call_named(self, name: str, *arguments: Value) -> None:
        """Call a function that returns nothing and is linked in later."""
        kind = ir.FunctionType(ir.VoidType(), [a.ir.type for a in arguments])
        self.builder.call(self.declare(name, kind), [a.ir for a in arguments])

    def call_address(self, address: Value, *arguments: Value) -> None:
        """Call a function that returns nothing by its address."""
        kind = ir.FunctionType(ir.VoidType(), [a.ir.type for a in arguments])
        function = self.builder.bitcast(address.ir, kind.as_pointer())
        self.builder.call(function, [a.ir for a in arguments])

    def declare(self, name: str, kind: ir.FunctionType) -> ir.Function:
        """A function of that name, declared once a module."""
        found = self.module.globals.get(name)
        return found if found is not None else ir.Function(self.module, kind, name)

    def intrinsic(
        self, name: str, returns: Type | None, *arguments: Value | int, overload: Type | None = None
    ) -> Value:
        """Call an LLVM intrinsic; whole-number arguments are immediate bytes."""
        if overload is not None:
            name += _suffix(overload)
        values = [
            a.ir if isinstance(a, Value) else ir.Constant(ir.IntType(8), a) for a in arguments
        ]
        result = ir.VoidType() if returns is None else returns.ir
        kind = ir.FunctionType(result, [value.type for value in values])
        made = self.builder.call(self.declare(name, kind), values)
        return Value(self, returns or I1, made)

    # Control.

    @contextlib.contextmanager
    def loop(self, start: Value | int, stop: Value | int, step: Value | int = 1) -> Iterator[Value]:
        """A counted loop over I64; the body may be run zero times."""
        first, last, by = (
            value if isinstance(value, Value) else self.constant(I64, value)
            for value in (start, stop, step)
        )
        head, body, end = (self.function.append_basic_block(n) for n in ("head", "body", "end"))
        before = self.builder.block
        self.builder.branch(head)
        self.builder.position_at_end(head)
        counter = self.builder.phi(I64.ir)
        counter.add_incoming(first.ir, before)
        self.builder.cbranch(self.builder.icmp_signed("<", counter, last.ir), body, end)
        self.builder.position_at_end(body)
        yield Value(self, I64, counter)
        counter.add_incoming(self.builder.add(counter, by.ir), self.builder.block)
        self.builder.branch(head)
        self.builder.position_at_end(end)

    @contextlib.contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Run the body if a scalar condition holds."""
        with self.builder.if_then(condition.ir):
            yield

    @contextlib.contextmanager
    def turns_until(self, condition: Callable[[], Value]) -> Iterator[None]:
        """Run the body until a scalar condition, computed before each turn, holds."""
        head, body, end = (self.function.append_basic_block(n) for n in ("test", "turn", "done"))
        self.builder.branch(head)
        self.builder.position_at_end(head)
        self.builder.cbranch(condition().ir, end, body)
        self.builder.position_at_end(body)
        yield
        self.builder.branch(head)
        self.builder.position_at_end(end)


def _suffix(kind: Type) -> str:
    """How an overloaded intrinsic spells a type: .v16f32."""
    return f".{kind.element}" if kind.lanes == 1 else f".v{kind.lanes}{kind.element}"
