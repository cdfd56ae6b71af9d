"""ARM64: NEON alone; with integer dot products; with those of mixed signs (i8mm).

Expansion is by transposing (`transpose`): 11 vector instructions for 64 weights at 2 bits, 16 at 4.
Repeating each row's byte with `tbl` and testing its bits takes 16 and 36. With one dot product for
each vector, 15 and 20. The linear kernel's inner loop, with two dot products for each vector, has
20 instructions of all kinds at 2 bits, 27 at 4, 16 at 8 (12 with i8mm); without the dot product
instruction 48, 53 and 59.

A lookup of partial sums (T-MAC, arXiv 2407.00088; `kernels.lookup`) takes both bytes of an
activation at once. Cycles for 64 weights with what is done once a block, modelled (Cortex-A76 by
the table of Neoverse-N1, which is the same design):

| bits           | 1    | 2    | 3    | 4    |
| -------------- | ---- | ---- | ---- | ---- |
| lookup, A76    | 5.7  | 9.5  | 13.6 | 17.6 |
| dot, NEON, A76 | 22.7 | 24.4 | 27.8 | 26.4 |
| dotprod, A76   | 10.1 | 11.2 | 14.9 | 13.9 |
| lookup, N2     | 5.6  | 9.5  | 13.5 | 17.6 |
| dotprod, N2    | 9.8  | 11.2 | 14.8 | 13.8 |

So it serves 1 to 3 bits, and 4 where there is no dot product instruction.

For many rows, i8mm's products of matrices take 2 outputs by 8 weights with both terms of a row, so
that a turn for 2 rows by 16 outputs multiplies 16 times and not 32: modelled on Neoverse-N2, 2.25
cycles for 64 weights of a row in place of 4.

One object serves Linux and Android: it calls nothing, and Android's convention, which leaves the
platform's register x18 alone, is the stricter one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from cpu.codegen.isa import CodeLayout, DotProduct, Expansion, Isa, TableLookup, byte_layout
from cpu.codegen.language import I16, I32, Code, Value
from cpu.codegen.transpose import expand_transposed, transposed_layout

_TRIPLE = "aarch64-linux-android24"
_VECTOR_BYTES = 16

# Registers matter more than latencies on cores that reorder. Scheduled for "generic", a loop of
# expansion and one dot product has 27 instructions for 64 weights at 4 bits, of which 5 move what
# was spilled; so, 23 and 1.
_TUNING = "cortex-x2"
_SCHEDULING = ",+disable-latency-sched-heuristic"

# What the sign bit is worth: a byte with it flipped is the code less this much, as a signed byte.
_SIGN = 0x80

_ADD_PAIRS = "llvm.aarch64.neon.saddlp.v4i32.v8i16"


def _exchange(a: Value, b: Value, shift: int, mask: int) -> tuple[Value, Value]:
    """4 instructions: two shifts, and two selections of bits."""
    rest = 0xFF ^ mask
    return (a & mask) | ((b << shift) & rest), ((a >> shift) & mask) | (b & rest)


def _layout(bits: int) -> CodeLayout:
    if bits == 8:
        return byte_layout(_VECTOR_BYTES, row_count=32)
    return transposed_layout(_VECTOR_BYTES, bits)


def _signed_layout(bits: int) -> CodeLayout:
    """The same where `dot_bytes` flips the sign."""
    return replace(_layout(bits), offset=_SIGN if bits == 8 else 0)


def _expand(code: Code, planes: Sequence[Sequence[Value]]) -> Iterator[Value]:
    del code
    return expand_transposed(_exchange, planes)


def _dot_widening(code: Code, accumulator: Value, codes: Value, activations: Value) -> Value:
    """4 instructions, for codes up to 127: two products are added as int16."""
    wide = I16.of(8)
    low, high = _products(codes, activations)
    pairs = code.intrinsic("llvm.aarch64.neon.addp", wide, low, high, overload=wide)
    return accumulator + code.intrinsic(_ADD_PAIRS, I32.of(4), pairs)


def _dot_bytes_widening(code: Code, accumulator: Value, codes: Value, activations: Value) -> Value:
    """7 instructions; twice 128 * 128 is no int16."""
    quads = I32.of(4)
    low, high = (
        code.intrinsic(_ADD_PAIRS, quads, part) for part in _products(codes ^ _SIGN, activations)
    )
    return accumulator + code.intrinsic("llvm.aarch64.neon.addp", quads, low, high, overload=quads)


def _products(codes: Value, activations: Value) -> list[Value]:
    """Of the first and the last 8 bytes, as int16."""
    return [
        codes.shuffle(half).to(I16) * activations.shuffle(half).to(I16)
        for half in (range(8), range(8, 16))
    ]


def _dot_signed(code: Code, accumulator: Value, codes: Value, activations: Value) -> Value:
    name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
    return code.intrinsic(name, accumulator.type, accumulator, codes, activations)


def _dot_mixed(code: Code, accumulator: Value, codes: Value, activations: Value) -> Value:
    name = "llvm.aarch64.neon.usdot.v4i32.v16i8"
    return code.intrinsic(name, accumulator.type, accumulator, codes, activations)


def _dot_pairs_mixed(code: Code, accumulator: Value, codes: Value, activations: Value) -> Value:
    name = "llvm.aarch64.neon.usmmla.v4i32.v16i8"
    return code.intrinsic(name, accumulator.type, accumulator, codes, activations)


def _dot_bytes_signed(code: Code, accumulator: Value, codes: Value, activations: Value) -> Value:
    return _dot_signed(code, accumulator, codes ^ _SIGN, activations)


def _lookup(code: Code, table: Value, indices: Value) -> Value:
    return code.intrinsic("llvm.aarch64.neon.tbl1.v16i8", table.type, table, indices)


def _multiply_add(code: Code, accumulator: Value, values: Value, factor: int) -> Value:
    """1 instruction, where a shift by a power of two and an addition would be 2."""
    factors = code.constant(values.type, factor)
    name, kind = "llvm.aarch64.neon.smull.v4i32", accumulator.type
    return accumulator + code.intrinsic(name, kind, values, factors)


def _pause(code: Code) -> None:
    """Tell the core that this is a waiting loop."""
    code.intrinsic("llvm.aarch64.hint", None, code.constant(I32, 1))


def _isa(
    name: str,
    features: str,
    layout: Callable[[int], CodeLayout],
    dot: DotProduct,
    dot_bytes: DotProduct,
) -> Isa:
    return Isa(
        name=name,
        triple=_TRIPLE,
        processor="generic",
        features=features + _SCHEDULING,
        tuning=_TUNING,
        vector_bytes=_VECTOR_BYTES,
        few=Expansion(layout, _expand),
        many=Expansion(layout, _expand),
        together=(2, 4),
        dot=dot,
        dot_bytes=dot_bytes,
        dots_by_lane=True,
        # modelled on Cortex-A76 at 4 bits, 19.8 cycles for 64 weights; of 2 steps, 20.3
        unroll=4,
        pause=_pause,
    )


# The widths that decode in fewer cycles by tables than by the dot products of each table.
_LOOKUP = TableLookup(_lookup, (1, 2, 3), multiply_add=_multiply_add)

# By the feature that a target must name, the least first.
TABLES: dict[str, Isa] = {
    "neon": replace(
        _isa("arm-neon", "+neon", _signed_layout, _dot_widening, _dot_bytes_widening),
        tables=replace(_LOOKUP, bits=(1, 2, 3, 4)),
    ),
    "dotprod": replace(
        _isa("arm-dotprod", "+neon,+dotprod", _signed_layout, _dot_signed, _dot_bytes_signed),
        tables=_LOOKUP,
    ),
    "i8mm": replace(
        _isa("arm-i8mm", "+neon,+dotprod,+i8mm", _layout, _dot_mixed, _dot_mixed),
        dot_pairs=_dot_pairs_mixed,
        tables=_LOOKUP,
    ),
}
