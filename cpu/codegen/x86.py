"""x86-64: AVX-512 with VNNI and GFNI; AMX beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from cpu.codegen.isa import CodeLayout, Expansion, Isa, Reading, Tiles, byte_layout
from cpu.codegen.language import F32, I8, I32, I64, POINTER, Code, Value
from cpu.codegen.transpose import unpack_lanes

TRIPLE = "x86_64-unknown-linux-gnu"


def _dot_vnni(code: Code, accumulator: Value, codes: Value, activations: Value) -> Value:
    name = "llvm.x86.avx512.vpdpbusd.512"
    return code.intrinsic(name, accumulator.type, accumulator, codes, activations)


def pause(code: Code) -> None:
    """Tell the processor that this is a spinning wait."""
    code.intrinsic("llvm.x86.sse2.pause", None)


def _expand_gfni(code: Code, planes: Sequence[Sequence[Value]]) -> Iterator[Value]:
    """Transpose bits with the Galois-field affine instruction.

    Interleaving the planes puts all bits of a row's 8 weights side by side; with unit vectors as
    its operand, the affine instruction transposes every 8 bytes of them, so byte j holds weight
    j's codes of 8 rows (1 bit), 4 rows (2 bits) or 2 rows (up to 4). Masks take a row out;
    its place in the byte stays, as a factor of the codes. The last row is taken with all others of
    its byte, whose sums are known (of 8 rows, too many to subtract). For 8 weights of 64 rows that
    is 9 vector instructions at 1 bit, 10 at 2, 16 at 4.
    """
    bits = _spread_bits(len(planes))
    whole = [plane[0] for plane in planes]
    whole += [code.constant(I8.of(64), 0)] * (bits - len(whole))
    units = code.constant(I64, 0x8040201008040201).broadcast(8).cast(I8.of(64))
    for mixed in _interleave(list(reversed(whole))):
        transposed = code.intrinsic("llvm.x86.vgf2p8affineqb.512", I8.of(64), units, mixed, 0)
        places = range(0, 8, bits)
        masked = places if bits == 1 else places[:-1]
        yield from (transposed & ((1 << bits) - 1) << place for place in masked)
        if bits > 1:
            yield transposed


def _gfni_layout(bits: int) -> CodeLayout:
    """What `_expand_gfni` makes, by the same steps on row numbers."""
    if bits == 8:
        return byte_layout(64)
    bits = _spread_bits(bits)
    per_byte = 8 // bits
    orders = [list(range(64))]
    while len(orders) < bits:
        orders = [_unpacked_rows(order, half) for order in orders for half in range(2)]
    rows, factors = [], []
    mixed = list[tuple[int, ...]]()
    for order in orders:
        for place in range(per_byte):
            # of the rows in 8 bytes, the last comes out lowest
            taken = [order[q * per_byte + per_byte - 1 - place] for q in range(8)]
            rows.append(tuple(row for row in taken for _ in range(2)))
            factors.append(1 << (bits * place))
        others = tuple(range(len(mixed), len(rows) - 1))
        mixed += [()] * len(others) + [others if bits > 1 else ()]
    slots = tuple(range(len(rows)))
    return CodeLayout(slots, tuple(rows), tuple(factors), mixed=tuple(mixed))


def _spread_bits(planes: int) -> int:
    """Bits that a code takes in a byte: 1, 2 or 4."""
    return 4 if planes == 3 else planes


def _interleave(planes: list[Value]) -> list[Value]:
    """Byte vectors with the planes of each row side by side."""
    vectors, size = [planes], 1
    while len(vectors[0]) > 1:
        vectors = [
            [
                a.shuffle(unpack_lanes(64, size, half), b)
                for a, b in zip(group[::2], group[1::2], strict=True)
            ]
            for group in vectors
            for half in range(2)
        ]
        size *= 2
    return [group[0] for group in vectors]


def _unpacked_rows(order: list[int], half: int) -> list[int]:
    """The rows that an unpack leaves: of every 16 bytes, the low or the high half."""
    per_block = len(order) // 4
    taken = per_block // 2
    return [order[block * per_block + half * taken + i] for block in range(4) for i in range(taken)]


def spread_nibbles(code: Code, nibbles: Value) -> Value:
    """One permute of a 16-entry table of words, which uses the low 4 bits of each index."""
    words = [sum(((n >> bit) & 1) << (8 * bit) for bit in range(4)) for n in range(16)]
    table = code.constant(I32.of(16), words)
    return code.intrinsic("llvm.x86.avx512.permvar.si.512", I32.of(16), table, nibbles)


def _expand_words(code: Code, planes: Sequence[Sequence[Value]]) -> Iterator[Value]:
    """Codes in the order of 8-bit ones, which is that of rows: a lookup for a plane's nibbles.

    27 vector instructions for 64 weights at 2 bits, 51 at 4.
    """
    for half in range(2):
        for first in range(0, 64, 16):
            words = code.constant(I32.of(16), 0)
            for place, plane in enumerate(planes):
                rows = plane[0].shuffle(range(first, first + 16)).to(I32, unsigned=True)
                words = words | (spread_nibbles(code, rows >> (4 * half)) << place)
            yield words.cast(I8.of(64))


def _words_layout(bits: int) -> CodeLayout:
    """Each row in one lane, which takes half the accumulators of `_gfni_layout`."""
    del bits
    return byte_layout(64)


WORDS = Expansion(_words_layout, _expand_words)


def _hidden(code: Code, numbers: Sequence[int]) -> Value:
    """A vector of bytes that LLVM cannot see to be constant, made where the function begins.

    What it knows it merges: two shuffles of one operand into one of two, which takes three
    micro-operations of Intel's processors where each of these takes one.
    """
    kind, in_place = I8.of(64), [8 * byte for byte in range(8)] * 8
    with code.builder.goto_entry_block():
        control, given = (code.constant(kind, values) for values in (in_place, numbers))
        return code.intrinsic(_MULTISHIFT, kind, control, given)


def _raised_codes(code: Code, planes: Sequence[Value]) -> Iterator[Value]:
    """Transpose bits as `_expand_gfni`, with 4 planes of 2 outputs in 8 bytes.

    Byte j then holds input j's code of the first output, and above it that of the second. Fields of
    8 bits that begin where one likes put them where a float32 of RAISED has its highest bits.
    """
    whole = [*planes, *[code.constant(I8.of(16), 0)] * (4 - len(planes))]
    joined = [a.shuffle(range(32), b) for a, b in zip(whole[::2], whole[1::2], strict=True)]
    last_first = [16 * plane + row for row in range(16) for plane in range(4)]
    for pair in range(0, 64, 8):  # the affine instruction takes the last byte for the lowest bit
        last_first[pair : pair + 8] = last_first[pair : pair + 8][::-1]
    rows, order = joined[0].shuffle(range(64), joined[1]), _hidden(code, last_first)
    mixed = code.intrinsic("llvm.x86.avx512.permvar.qi.512", I8.of(64), rows, order)
    units = code.constant(I64, 0x8040201008040201).broadcast(8).cast(I8.of(64))
    both = code.intrinsic("llvm.x86.vgf2p8affineqb.512", I8.of(64), units, mixed, 0)
    for row in range(8):
        starts = [0, 0, (8 * row - 3) % 64, 0, 0, 0, 8 * row + 1, 0] * 8
        control = code.constant(I8.of(64), starts)
        fields = code.intrinsic(_MULTISHIFT, I8.of(64), control, both)
        yield (fields.cast(I32.of(16)) & (15 << 19) | _RAISED_BITS).cast(F32.of(16))


# Of RAISED, whose mantissa has its four highest bits for a code.
_RAISED_BITS = 0x41800000

_MULTISHIFT = "llvm.x86.avx512.pmultishift.qb.512"


def _paired(code: Code, first: Value, second: Value) -> Value:
    """Half of what is cut off is added; then the first's upper halves replace the second's lower.

    Instructions that round to bfloat16 take four micro-operations, and leave no pairs.
    """
    low, high = ((value.cast(I32.of(16)) + 0x8000).cast(I8.of(64)) for value in (first, second))
    control = code.constant(I8.of(64), [16, 24, 0, 0, 48, 56, 0, 0] * 8)
    moved = code.intrinsic(_MULTISHIFT, I8.of(64), control, low)
    lower = _hidden(code, [1, 1, 0, 0] * 16)
    with code.builder.goto_entry_block():
        lower = lower > 0
    return lower.select(moved, high)


def _configure_tiles(code: Code) -> None:
    """Eight tiles of 16 rows of 64 bytes, by a configuration that is built on the stack."""
    size = 64
    with code.builder.goto_entry_block():
        slot = code.builder.alloca(I8.of(size).ir)
    pointer = Value(code, POINTER, code.builder.bitcast(slot, POINTER.ir))
    row_bytes = [byte for _ in range(8) for byte in (64, 0)]
    palette = [1] + [0] * 15 + row_bytes + [0] * 16 + [16] * 8 + [0] * 8
    code.store(code.constant(I8.of(size), palette), pointer)
    code.intrinsic("llvm.x86.ldtilecfg", None, pointer)


def _release_tiles(code: Code) -> None:
    code.intrinsic("llvm.x86.tilerelease", None)


def _clear_tile(code: Code, tile: int) -> None:
    code.intrinsic("llvm.x86.tilezero", None, tile)


def _load_tile(code: Code, tile: int, pointer: Value, stride: Value) -> None:
    code.intrinsic("llvm.x86.tileloadd64", None, tile, pointer, stride)


def _dot_tiles(code: Code, c: int, a: int, b: int) -> None:
    code.intrinsic("llvm.x86.tdpbf16ps", None, c, a, b)


def _store_tile(code: Code, tile: int, pointer: Value, stride: Value) -> None:
    code.intrinsic("llvm.x86.tilestored64", None, tile, pointer, stride)


_TILES = Tiles(
    configure=_configure_tiles,
    release=_release_tiles,
    clear=_clear_tile,
    load=_load_tile,
    dot=_dot_tiles,
    store=_store_tile,
    raised_codes=_raised_codes,
    paired=_paired,
)

_AVX512 = "+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512vnni,+avx512vbmi,+gfni,+fma,+f16c,+bmi2"

# Of the float16 arithmetic that comes with AMX a target says nothing: virtual machines may hide it.
_AMX = ",+amx-tile,+amx-bf16,+amx-int8,+avx512bf16,-avx512fp16"


def _isa(
    name: str, processor: str, tuning: str, features: str, reading: Reading, tiles: Tiles | None
) -> Isa:
    return Isa(
        name=name,
        triple=TRIPLE,
        processor=processor,
        tuning=tuning,
        features=features,
        vector_bytes=64,
        few=Expansion(_gfni_layout, _expand_gfni),
        many=WORDS,
        together=(4, 2),
        dot=_dot_vnni,
        dot_bytes=_dot_vnni,
        pause=pause,
        reading=reading,
        tiles=tiles,
    )


# Scheduled for Zen, two threads of a Zen 5 read w4g64 at 44 GB/s, as they read for a plain sum, and
# scheduled for Ice Lake, Skylake or Sapphire Rapids at 40. Prefill is as fast either way. A step a
# turn asks for 4 lines at once at 4 bits, which reads 3 % faster than 8; the rest is as fast.
_VNNI = replace(
    _isa("x86-vnni", "icelake-server", "znver4", _AVX512, Reading(1, 6144, keep=False), tiles=None),
    unroll=1,
)

# By the feature that a target must name, the least first.
TABLES: dict[str, Isa] = {
    "vnni": _VNNI,
    "amx": _isa("x86-amx", "sapphirerapids", "", _AVX512 + _AMX, Reading(4, 1024), _TILES),
}
