"""What HVX's float vectors lack, made of what they have: for `cpu.codegen` by versions from 68 on.

There are additions, subtractions, products, comparisons, minima and maxima of 32 float32 lanes:
through qf32, which rounds a little otherwise than IEEE, up to v75, and IEEE's own in v79. There is
no division, no rounding to a whole number, and no sum of a product that is rounded once; vectors
shorter than a register are taken apart lane by lane by LLVM.
"""

from __future__ import annotations

from collections.abc import Callable

from cpu.codegen.isa import VectorFloats
from cpu.codegen.language import F32, I8, I32, Code, Value

# Versions from here on convert between float32 and words by one instruction; LLVM makes the same of
# integer instructions where it is told to.
FIRST_WITH_CONVERSIONS = 73

_SIGN, _SIZE = -(1 << 31), 0x7FFFFFFF

# Less a number's bits: the bits of its inverse within 5.1 percent, which three steps of Newton's
# bring to 2^-29 of it.
_INVERSE_BITS = 0x7EF311C3
_NEWTON_STEPS = 3

# What a whole number is added to so that its bits are the last of a float's.
_MIDDLE, _MIDDLE_BITS = 12582912.0, 0x4B400000

VECTOR_LANES = 32
_VECTOR_BYTES = 4 * VECTOR_LANES


def vector_floats(version: int) -> VectorFloats:
    """The operations for a version."""
    converts = version >= FIRST_WITH_CONVERSIONS
    to_words = _to_words if converts else _to_words_by_llvm
    from_words = _from_words if converts else _from_words_by_llvm

    def rounded(value: Value) -> Value:
        return _rounded(value, to_words, from_words)

    def load_bytes(code: Code, pointer: Value, byte_count: Value | int) -> Value:
        """32 signed bytes as float32 lanes. 128 bytes are read."""
        held = code.load(I8.of(_VECTOR_BYTES), pointer, byte_count).to(I32)
        words = held.shuffle(range(VECTOR_LANES))
        return from_words(words) if converts else _from_small(words)

    return VectorFloats(divide, _multiply_add, rounded, to_words, from_words, fold, load_bytes)


def divide(a: Value, b: Value) -> Value:
    """a / b to about 2 units in the last place; 0 where 1 / b is too small for a float32.

    b is not 0.
    """
    code, lanes = b.code, b.type.lanes
    words = b.cast(I32.of(lanes))
    guess = (code.like(words, _INVERSE_BITS) - (words & _SIZE)).maximum(0)
    size, inverse = b.magnitude(), guess.cast(F32.of(lanes))
    for _ in range(_NEWTON_STEPS):
        inverse = inverse * (code.like(b, 2.0) - size * inverse)
    signed = inverse.cast(I32.of(lanes)) | (words & _SIGN)
    return a * signed.cast(F32.of(lanes))


def _multiply_add(a: Value, b: Value, c: Value) -> Value:
    """a * b + c. In qf32 the product is not rounded to a float32 in between."""
    return a * b + c


def _rounded(
    value: Value, to_words: Callable[[Value], Value], from_words: Callable[[Value], Value]
) -> Value:
    """The nearest whole number, ties to even, of magnitudes below 2^31.

    Right whichever way `to_words` rounds: what it leaves, which is exact, says what to add.
    """
    code = value.code
    words = to_words(value)
    whole = from_words(words)
    rest = value - whole
    size = rest.magnitude()
    away = (size > 0.5) | (size.equals(0.5) & (words & 1).equals(1))
    step = (rest > 0.0).select(code.like(rest, 1.0), -1.0)
    return away.select(whole + step, whole)


def _to_words(value: Value) -> Value:
    lanes = I32.of(VECTOR_LANES)
    return value.code.intrinsic("llvm.hexagon.V6.vconv.w.sf.128B", lanes, value.cast(lanes))


def _from_words(value: Value) -> Value:
    made = value.code.intrinsic("llvm.hexagon.V6.vconv.sf.w.128B", value.type, value)
    return made.cast(F32.of(VECTOR_LANES))


def _to_words_by_llvm(value: Value) -> Value:
    code, kind = value.code, I32.of(value.type.lanes)
    return Value(code, kind, code.builder.fptosi(value.ir, kind.ir))


def _from_words_by_llvm(value: Value) -> Value:
    code, kind = value.code, F32.of(value.type.lanes)
    return Value(code, kind, code.builder.sitofp(value.ir, kind.ir))


def fold(value: Value, combine: Callable[[Value, Value], Value]) -> Value:
    """All lanes by halves into one scalar: rotated, so that vectors stay as wide as registers."""
    lanes = value.type.lanes
    distance = lanes // 2
    while distance:
        turned = value.shuffle([(lane + distance) % lanes for lane in range(lanes)])
        value = combine(value, turned)
        distance //= 2
    return value.lane(0)


def _from_small(words: Value) -> Value:
    """Words of magnitudes below 2^22: in the last bits of 1.5 * 2^23, which is taken away again."""
    return (words + _MIDDLE_BITS).cast(F32.of(VECTOR_LANES)) - _MIDDLE
