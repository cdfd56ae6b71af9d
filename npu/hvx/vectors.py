"""HVX's own operations in the vector language.

A vector is 128 bytes, a pair 256. `Value`s are typed by what their lanes hold, and `raw` is how
LLVM's intrinsics see them: 32 or 64 words.
"""

from __future__ import annotations

from cpu.codegen.language import I16, I32, I64, Code, Type, Value
from npu.hvx.isa import VECTOR_BYTES

VECTOR = I32.of(32)
PAIR = I32.of(64)
HALVES = I16.of(64)
WORD_BYTES = 4


def _name(name: str) -> str:
    return f"llvm.hexagon.V6.{name}.128B"


def raw(value: Value) -> Value:
    """The same bits as words."""
    return value.cast(VECTOR if value.type.byte_count == VECTOR_BYTES else PAIR)


def _call(name: str, returns: Type, *operands: Value | int) -> Value:
    code = next(operand.code for operand in operands if isinstance(operand, Value))
    values = [_operand(code, operand) for operand in operands]
    return code.intrinsic(_name(name), returns, *values)


def _operand(code: Code, operand: Value | int) -> Value:
    if isinstance(operand, int):
        return code.constant(I32, operand)
    return operand if operand.type.lanes == 1 else raw(operand)


def load(code: Code, pointer: Value, byte_count: Value | int = 0) -> Value:
    """A vector from an address that is a multiple of 128."""
    return code.load(VECTOR, pointer, byte_count, align=VECTOR_BYTES)


def store(value: Value, pointer: Value, byte_count: Value | int = 0) -> None:
    """A vector to an address that is a multiple of 128."""
    value.code.store(raw(value), pointer, byte_count, align=VECTOR_BYTES)


def low(pair: Value) -> Value:
    """First vector of a pair."""
    return _call("lo", VECTOR, pair)


def high(pair: Value) -> Value:
    """Second vector of a pair."""
    return _call("hi", VECTOR, pair)


def leading_zeros(word: Value) -> Value:
    """Of a scalar's 32 bits."""
    return word.code.intrinsic("llvm.hexagon.S2.cl0", I32, word)


def splat(word: Value) -> Value:
    """A 32-bit scalar in every word."""
    return _call("lvsplatw", VECTOR, word)


def first_word(value: Value) -> Value:
    """As a scalar."""
    return _call("extractw", I32, value, 0)


def rotated(value: Value, byte_count: Value | int) -> Value:
    """Byte i is what byte i + byte_count was."""
    return _call("vror", VECTOR, value, byte_count)


def largest(words: Value) -> Value:
    """The largest word, in every word."""
    distance = VECTOR_BYTES
    while distance > WORD_BYTES:
        distance //= 2
        words = words.maximum(rotated(words, distance))
    return words


def lookup16(indices: Value, tables: Value, which: int) -> Value:
    """`vlut16`: 128 bytes -> 128 entries of 16 bits, those of even bytes and those of odd ones.

    The low 4 bits of a byte count. A vector holds four tables of 16 entries: in the words' low
    halves, tables 0 (words 0 to 15) and 1 (16 to 31), in their high halves tables 2 and 3.
    """
    return _call("vlutvwh.nm", PAIR, indices, tables, which)


def lookup8(indices: Value, table: Value) -> Value:
    """`vlut32`: 128 bytes below 32 -> entries of 8 bits: every second byte of a vector."""
    return _call("vlutvvb", VECTOR, indices, table, 0)


def add_widening(sums: Value, a: Value, b: Value) -> Value:
    """sums + a + b of 16-bit lanes: even lanes in the pair's first vector, odd in its second."""
    return _call("vaddhw.acc", PAIR, sums, a, b)


def dot_halves(sums: Value, a: Value, halves: Value) -> Value:
    """sums + dot products of the 2 halves of each word with a scalar's; saturated."""
    return _call("vdmpyhsat.acc", VECTOR, sums, a, halves)


def dot_ones(halves: Value) -> Value:
    """Sums of the 2 halves of each word."""
    return _call("vdmpyhsat", VECTOR, halves, 0x00010001)


def paired(first: Value, second: Value) -> Value:
    """Sums of 2 neighbouring words each: those of the first vector, then those of the second."""
    parted = dealt(first, second, WORD_BYTES)
    return low(parted) + high(parted)


def times_fractions(words: Value, fractions: Value) -> Value:
    """words * fractions / 2^31, rounded to nearest, halves up, of what is left when the products
    with the low halves of fractions are cut at 2^16.
    """
    by_low = _call("vmpyewuh", VECTOR, words, fractions)
    return _call("vmpyowh.rnd.sacc", VECTOR, by_low, words, fractions)


def narrowed(first: Value, second: Value, shift: int) -> Value:
    """Words of both vectors / 2^shift, rounded to nearest, halves up, as 16-bit lanes."""
    by_turns = _call("vasrwhrndsat", VECTOR, second, first, shift)
    return even_halves_first(by_turns).cast(HALVES)


def add_shifted(sums: Value, words: Value, shift: Value) -> Value:
    """sums + words / 2^shift, rounded down."""
    return _call("vasrw.acc", VECTOR, sums, words, shift)


def scaled(words: Value, factors: Value) -> Value:
    """words * odd 16-bit lanes of factors / 2^15, rounded to nearest, halves up."""
    return _call("vmpyowh.rnd", VECTOR, words, factors)


def even_halves(value: Value) -> Value:
    """The even 16-bit lanes, each in both halves of its word."""
    return _call("vshufeh", VECTOR, value, value)


def interleaved(first: Value, second: Value, byte_count: int = 4) -> Value:
    """The first halves of both by turns, so many bytes each, then the last halves, as a pair."""
    return _call("vshuffvdd", PAIR, second, first, -byte_count)


def dealt(first: Value, second: Value, byte_count: int) -> Value:
    """Of both by turns, so many bytes each, the even ones, then the odd ones, as a pair."""
    return _call("vdealvdd", PAIR, second, first, -byte_count)


def exchanged(first: Value, second: Value, byte_count: int) -> Value:
    """Odd runs of so many bytes (a power of two) of the first, and even ones of the second, in each
    other's places, as a pair.
    """
    return _call("vshuffvdd", PAIR, second, first, byte_count)


def even_halves_first(value: Value) -> Value:
    """The even 16-bit lanes, then the odd ones."""
    return _call("vdealh", VECTOR, value)


def odd_halves(first: Value, second: Value) -> Value:
    """The odd 16-bit lanes of the first vector, then of the second."""
    return _call("vpackoh", VECTOR, second, first).cast(HALVES)


def paired_halves(first: Value, second: Value, *, odd: bool) -> Value:
    """The even, or the odd, 16-bit lanes of both by turns."""
    return _call("vshufoh" if odd else "vshufeh", VECTOR, second, first)


def subtract_bytes(a: Value, b: Value) -> Value:
    """Bytes of a less those of b."""
    return _call("vsubb", VECTOR, a, b)


def leading_zeros_of_halves(value: Value) -> Value:
    """Of each 16-bit lane."""
    return _call("vcl0h", VECTOR, value).cast(HALVES)


def dot_bytes(sums: Value, codes: Value, activations: Value) -> Value:
    """sums + dot products of 4 unsigned bytes of each word with a scalar's 4 signed ones."""
    return _call("vrmpybus.acc", VECTOR, sums, codes, activations)


def fetch(code: Code, pointer: Value, *, width: Value, height: Value, stride: Value) -> None:
    """`l2fetch`: ask for `height` rows of `width` bytes, `stride` apart; each at most 65535."""
    shape = (stride << 32) | (width << 16) | height
    code.intrinsic("llvm.hexagon.Y5.l2fetch", None, pointer, shape.to(I64))
