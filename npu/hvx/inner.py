"""The lookup loops for whole blocks of 256 activations at 1 to 4 bits, as scheduled assembly.

One turn (`turn`) takes a block of a tile of 64 rows, with the tables of the block held in registers
(T-MAN's tile: 16 vectors of tables, 256 activations). `gemv` is what these compute, to the bit. A
call takes a struct of 32-bit words, see `WORDS`.
"""

from __future__ import annotations

from collections.abc import Iterable

from edge.formats import Format
from edge.planes import STEP, TILE
from npu.hvx import registers as at
from npu.hvx.isa import VECTOR_BYTES
from npu.hvx.knobs import KNOBS, Knobs, shape_of
from npu.hvx.schedule import (
    PASSING,
    Loop,
)
from npu.hvx.tables import BLOCK
from npu.hvx.turn import Turn, tiles_of

# Arguments: addresses (all of whole vectors; `scratch` is one that the loop may write to), the
# block's ratio in both halves of a word, how many turns, bytes from a tile's codes, scales and
# offsets to the next one's. Behind them, for an asymmetric format, what `zeros.sum_pairs` makes:
# the shift, then the sums of activations of pairs of groups.
WORDS = (
    *("tables", "codes", "steps", "offsets", "sums", "totals", "scratch"),
    *("ratio", "turns", "code_stride", "scale_stride", "offset_stride"),
)

_STEPS = BLOCK // STEP


def covers(form: Format) -> bool:
    """Whether a scheduled loop exists for a format."""
    return form.quantized and shape_of(form) in KNOBS


def name_of(form: Format) -> str:
    """The function's name; formats that differ in nothing the loop sees share one."""
    return f"lookup_blocks_{'ternary_' if form.kind == 'ternary' else ''}{shape_of(form)}"


def scheduled(form: Format, knobs: Knobs, most: int = 10_000) -> Loop:
    """A schedule of at most so many packets. Raises DoesNotFit."""
    made = Loop(
        operations=Turn(form, knobs).write(),
        free=tuple(range(knobs.resident, PASSING)),
        ahead=knobs.window,
        patience=knobs.patience,
        units=knobs.units,
        latency=knobs.latency,
        limit=knobs.limit,
        shuffle=knobs.shuffle,
        most=most,
    )
    made.schedule()
    return made


def loop_of(form: Format) -> Loop:
    """The schedule of a format that `covers` has."""
    return scheduled(form, KNOBS[shape_of(form)])


def assemblies(formats: Iterable[Format]) -> list[str]:
    """The loops that kernels for these formats call."""
    return list({name_of(form): assembly(form) for form in formats if covers(form)}.values())


def assembly(form: Format) -> str:
    """The function `name_of(form)`, which takes the address of a struct of `WORDS`."""
    knobs = KNOBS[shape_of(form)]
    made = scheduled(form, knobs)
    name, label = name_of(form), f".L{name_of(form)}"
    lines = ["\t.text", f"\t.globl {name}", "\t.p2align 5", f"\t.type {name},@function", f"{name}:"]
    lines += _setup(form, knobs.resident, label)
    lines += _packets(made.packets(before=False))
    lines += [f"\t{{ if (p0) jump:nt {label}_end }}", "\t.p2align 5", f"{label}:"]
    lines += _packets(made.packets())
    lines[-1] += ":endloop0"
    lines += [f"{label}_end:", *_packets(made.packets(this=False))]
    lines += [f"\t{{ r{i + 1}:{i} = memd(r29+#{8 * n}) }}" for n, i in enumerate(_SAVED)]
    lines += [f"\t{{ r29 = add(r29,#{_FRAME_BYTES}) }}", "\t{ jumpr r31 }"]
    lines += [f"\t.size {name},.-{name}", ""]
    return "\n".join(lines)


# The first of the pairs of registers that are the caller's.
_SAVED = (*range(16, 28, 2), 30)
_FRAME_BYTES = 8 * len(_SAVED)


def _setup(form: Format, resident: int, label: str) -> list[str]:
    """Registers from the struct that r0 points to, and the loop; p0 says that one turn is all."""

    def word(name: str) -> str:
        return f"memw(r0+#{4 * WORDS.index(name)})"

    code = [f"r29 = add(r29,#-{_FRAME_BYTES})"]
    code += [f"memd(r29+#{8 * n}) = r{i + 1}:{i}" for n, i in enumerate(_SAVED)]
    code += [f"r28 = {word('tables')}", f"r28 = add(r28,#{at.REACH // 2 * VECTOR_BYTES})"]
    code += [f"v{i} = vmem({at.TABLES_AT.name}+#{i - at.REACH // 2})" for i in range(resident)]
    code += [
        f"r1 = {word('ratio')}",
        f"v{PASSING} = vsplat(r1)",
        f"{at.RATIO.name} = {word('scratch')}",
    ]
    code += [f"vmem({at.RATIO.name}+#0) = v{PASSING}", f"r1 = {word('codes')}"]
    for index, pointer in enumerate(at.CODES[: form.bits]):
        place = (index * at.REACH + at.REACH // 2) * VECTOR_BYTES
        code.append(f"{pointer.name} = add(r1,#{place})")
    for pointer, name in (
        (at.SCALES[0], "steps"),
        (at.OFFSETS[0], "offsets"),
        (at.TOTALS, "totals"),
    ):
        code.append(f"{pointer.name} = {word(name)}")
    code += [f"{at.SUMS.name} = {word('sums')}"]
    strides = (at.CODE_STRIDE, at.SCALE_STRIDE, at.OFFSET_STRIDE)
    names = ("code_stride", "scale_stride", "offset_stride")
    code += [f"{r} = {word(name)}" for r, name in zip(strides, names, strict=True)]
    behind = enumerate((at.ZERO_SHIFT, *at.SUM_PAIRS), len(WORDS))
    code += [f"{r} = memw(r0+#{4 * n})" for n, r in behind]
    code += [f"r1 = {word('turns')}", "r1 = add(r1,#-1)", "p0 = cmp.eq(r1,#0)"]
    code += [f"loop0({label},r1)", *(f"r{which} = #{which}" for which in range(4))]
    code += [f"{at.FOUR} = #4", f"{at.BY_4096} = ##0x08000800", f"{at.TWO} = #2"]
    code.append(f"{at.BY_TURNS} = #-{1 if form.bits == 1 else 4}")  # bytes, or words
    for (first, second), register in at.WEIGHTS_AT[form.bits].items():
        code.append(f"{register} = ##{(second << 8 | first) * 0x10001}")
    if tiles_of(form) == 2:
        code += _second_tile()
    for pointer, codes in zip(at.FETCHED[: tiles_of(form)], at.CODES, strict=False):
        code.append(f"{pointer.name} = add({codes.name},{at.CODE_STRIDE})")
        code.append(f"{pointer.name} = add({pointer.name},#-{at.REACH // 2 * VECTOR_BYTES})")
    low, high = at.FETCHED_SHAPE
    code_bytes = _STEPS * TILE * form.bits
    code += [f"{low} = ##{code_bytes << 16 | 1}", f"{high} = ##{code_bytes}"]
    return [f"\t{{ {line} }}" for line in code]


def _second_tile() -> list[str]:
    """Where a turn's second tile begins, and strides of two tiles."""
    places = (
        (at.CODES, at.CODE_STRIDE),
        (at.SCALES, at.SCALE_STRIDE),
        (at.OFFSETS, at.OFFSET_STRIDE),
    )
    code = [f"{second.name} = add({first.name},{by})" for (first, second, *_), by in places]
    return code + [f"{by} = add({by},{by})" for _, by in places]


def _packets(packets: list[list[str]]) -> list[str]:
    return [f"\t{{ {'; '.join(lines)} }}" for lines in packets if lines]
