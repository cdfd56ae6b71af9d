"""x86-64 without VNNI: AVX2, and AVX-512 of its first generation.

Their dot product multiplies bytes into sums of pairs, in int16. Codes end at 16 here, so that some
steps' sums fit before they are widened: 2 instructions a product, where widening each takes 3.
Codes of 8 bits are widened first.

Decode looks up partial sums (`kernels.lookup`), of 32 or 64 rows at once. GB/s of weights, measured
on a Zen 5: in the second cache by one thread, and from memory by two, which read 43 to 53 in all.

| bits                   | 1    | 2    | 3    | 4    | 2, memory | 4, memory |
| ---------------------- | ---- | ---- | ---- | ---- | --------- | --------- |
| AVX2, dot products     | 8.9  | 13.0 | 13.6 | 17.5 | 24        | 33        |
| AVX2, lookup           | 12.4 | 21.7 | 16.8 | 20.8 | 38        | 37        |
| AVX-512, dot products  |      | 24.6 |      | 27.6 | 44        | 48        |
| AVX-512, lookup        |      | 35.1 |      | 37.1 | 50        | 48        |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cpu.codegen.isa import CodeLayout, Expansion, Isa, TableLookup, Widening, byte_layout
from cpu.codegen.language import I1, I8, I16, I64, Code, Value
from cpu.codegen.transpose import expand_transposed, transposed_layout, unpack_lanes
from cpu.codegen.x86 import TRIPLE, WORDS, pause

_AVX2_BYTES, _AVX512_BYTES = 32, 64
_PAIRS = {_AVX2_BYTES: "llvm.x86.avx2.pmadd.ub.sw", _AVX512_BYTES: "llvm.x86.avx512.pmaddubs.w.512"}
_SHUFFLES = {_AVX2_BYTES: "llvm.x86.avx2.pshuf.b", _AVX512_BYTES: "llvm.x86.avx512.pshuf.b.512"}
_QUADS = {_AVX2_BYTES: "llvm.x86.avx2.pmadd.wd", _AVX512_BYTES: "llvm.x86.avx512.pmaddw.d.512"}


def _exchange(a: Value, b: Value, shift: int, mask: int) -> tuple[Value, Value]:
    """6 instructions: there is no selection of bits, so what differs is moved both ways."""
    differing = ((a >> shift) ^ b) & mask
    return a ^ (differing << shift), b ^ differing


def _avx2_layout(bits: int) -> CodeLayout:
    if bits == 8:
        return byte_layout(_AVX2_BYTES, row_count=32)
    return transposed_layout(_AVX2_BYTES, 4)  # of fewer bits, too: without factors, sums are less


def _avx2_expand(code: Code, planes: Sequence[Sequence[Value]]) -> Iterator[Value]:
    """6.5 vector instructions for 64 weights at 2 bits, 11 at 4."""
    del code
    if len(planes) > 2:
        return expand_transposed(_exchange, planes)
    return _expand_two([plane[0] for plane in planes])


def _expand_two(planes: Sequence[Value]) -> Iterator[Value]:
    """The same for 1 or 2 planes: bytes are put side by side while each has codes of 4 weights."""
    words = I16.of(_AVX2_BYTES // 2)

    def shifted(value: Value, count: int) -> Value:
        return (value.cast(words) >> count).cast(value.type)  # what comes from above is masked

    if len(planes) == 1:
        even, odd = planes[0], shifted(planes[0], 1)
    else:
        even, odd = _exchange(planes[0], planes[1], 1, 0x55)
    mask = (1 << len(planes)) - 1
    for half in range(2):
        first = even.shuffle(unpack_lanes(_AVX2_BYTES, 1, half), odd)
        second = shifted(first, 2)
        for quad in range(2):
            four = first.shuffle(unpack_lanes(_AVX2_BYTES, 2, quad), second)
            yield four & mask
            yield shifted(four, 4) & mask


def _mask_layout(bits: int) -> CodeLayout:
    if bits == 8:
        return byte_layout(_AVX512_BYTES)
    rows = tuple(tuple(8 * s + lane // 2 for lane in range(16)) for s in range(8))
    return CodeLayout(tuple(range(8)), rows, (1,) * 8, offset=-1)


def _mask_expand(code: Code, planes: Sequence[Sequence[Value]]) -> Iterator[Value]:
    """8 rows of a plane are 64 bits, which is a mask register: it adds the plane's worth to bytes.

    A load and a masked instruction for each plane: 4 for 64 weights at 2 bits, 8 at 4; with dot
    products 7 and 11. Codes are 1 more, so that the additions carry: the optimizer would make
    `or` of those that do not, which has no masked form for bytes.
    """
    words = [plane[0].cast(I64.of(8)) for plane in planes]
    for s in range(8):
        codes = code.constant(I8.of(_AVX512_BYTES), 1)
        for place, word in enumerate(words):
            mask = word.lane(s).cast(I1.of(_AVX512_BYTES))
            codes = mask.select(codes + (1 << place), codes)
        yield codes


def _dot(code: Code, accumulator: Value, codes: Value, activations: Value) -> Value:
    """2 instructions, into int16."""
    name = _PAIRS[codes.type.lanes]
    return accumulator + code.intrinsic(name, accumulator.type, codes, activations)


def _widen(code: Code, total: Value, high: Value, low: Value) -> Value:
    """4 instructions."""
    for term, worth in ((high, 256), (low, 1)):
        factors = code.like(term, worth)
        total = total + code.intrinsic(_QUADS[code.isa.vector_bytes], total.type, term, factors)
    return total


def _dot_bytes(code: Code, accumulator: Value, codes: Value, activations: Value) -> Value:
    """6 instructions: bytes at even and at odd places, each widened to int16."""
    size = codes.type.lanes
    words = codes.cast(I16.of(size // 2))
    for part, first in ((words & 0xFF, 0), (words >> 8, 1)):
        wide = activations.shuffle(range(first, size, 2)).to(I16)
        accumulator = accumulator + code.intrinsic(_QUADS[size], accumulator.type, part, wide)
    return accumulator


def _lookup(code: Code, table: Value, indices: Value) -> Value:
    return code.intrinsic(_SHUFFLES[table.type.lanes], table.type, table, indices)


def _add_pairs(
    code: Code, sums: Value, found: Value, worths: tuple[int, int], *, signed: bool
) -> Value:
    """2 instructions."""
    factors = code.constant(found.type, list(worths) * (found.type.lanes // 2))
    if found.type.element == "i16":
        name, operands = _QUADS[code.isa.vector_bytes], (found, factors)
    else:  # bytes without a sign by those with one
        name = _PAIRS[code.isa.vector_bytes]
        operands = (factors, found) if signed else (found, factors)
    return sums + code.intrinsic(name, sums.type, *operands)


_TABLES = TableLookup(_lookup, bits=(1, 2, 3, 4), add_pairs=_add_pairs)

_WIDENING = Widening(pair=2, widen=_widen)

_TRANSPOSED = Expansion(_avx2_layout, _avx2_expand)

# By the feature that a target must name, the least first.
TABLES: dict[str, Isa] = {
    "avx2": Isa(
        name="x86-avx2",
        triple=TRIPLE,
        processor="haswell",
        features="+avx2,+fma,+f16c",
        vector_bytes=_AVX2_BYTES,
        few=_TRANSPOSED,
        many=_TRANSPOSED,
        together=(1, 2),
        keys_together=2,
        dot=_dot,
        widening=_WIDENING,
        dot_bytes=_dot_bytes,
        tables=_TABLES,
        pause=pause,
    ),
    "avx512": Isa(
        name="x86-avx512",
        triple=TRIPLE,
        processor="skylake-avx512",
        features="+avx512f,+avx512bw,+avx512vl,+avx512dq,+fma,+f16c",
        vector_bytes=_AVX512_BYTES,
        few=Expansion(_mask_layout, _mask_expand),
        many=WORDS,
        together=(4, 2),
        dot=_dot,
        widening=_WIDENING,
        dot_bytes=_dot_bytes,
        tables=_TABLES,
        pause=pause,
    ),
}
