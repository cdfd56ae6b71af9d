"""x86-64 without VNNI: AVX2, and AVX-512 of its first generation.

Their dot product multiplies bytes into pairs of int16 that saturate above codes of 128, so no large
factor is left in codes here (they end at 16), and codes of 8 bits are widened first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cpu.codegen.isa import CodeLayout, Expansion, Isa, byte_layout
from cpu.codegen.language import I1, I8, I16, I64, Code, Value
from cpu.codegen.transpose import expand_transposed, transposed_layout
from cpu.codegen.x86 import TRIPLE, WORDS, pause

_AVX2_BYTES, _AVX512_BYTES = 32, 64
_PAIRS = {_AVX2_BYTES: "llvm.x86.avx2.pmadd.ub.sw", _AVX512_BYTES: "llvm.x86.avx512.pmaddubs.w.512"}
_QUADS = {_AVX2_BYTES: "llvm.x86.avx2.pmadd.wd", _AVX512_BYTES: "llvm.x86.avx512.pmaddw.d.512"}


def _exchange(a: Value, b: Value, shift: int, mask: int) -> tuple[Value, Value]:
    """6 instructions: there is no selection of bits, so what differs is moved both ways."""
    differing = ((a >> shift) ^ b) & mask
    return a ^ (differing << shift), b ^ differing


def _avx2_layout(bits: int) -> CodeLayout:
    if bits == 8:
        return byte_layout(_AVX2_BYTES, row_count=32)
    return transposed_layout(_AVX2_BYTES, bits)


def _avx2_expand(code: Code, planes: Sequence[Sequence[Value]]) -> Iterator[Value]:
    """6.5 vector instructions for 64 weights at 2 bits, 11 at 4; with dot products 12.5 and 17."""
    del code
    return expand_transposed(_exchange, planes)


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
    """3 instructions; the sum of two products must fit int16: codes up to 128."""
    size = codes.type.lanes
    pairs = code.intrinsic(_PAIRS[size], I16.of(size // 2), codes, activations)
    ones = code.like(pairs, 1)
    return accumulator + code.intrinsic(_QUADS[size], accumulator.type, pairs, ones)


def _dot_bytes(code: Code, accumulator: Value, codes: Value, activations: Value) -> Value:
    """6 instructions: bytes at even and at odd places, each widened to int16."""
    size = codes.type.lanes
    words = codes.cast(I16.of(size // 2))
    for part, first in ((words & 0xFF, 0), (words >> 8, 1)):
        wide = activations.shuffle(range(first, size, 2)).to(I16)
        accumulator = accumulator + code.intrinsic(_QUADS[size], accumulator.type, part, wide)
    return accumulator


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
        dot_bytes=_dot_bytes,
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
        dot_bytes=_dot_bytes,
        pause=pause,
    ),
}
