"""The inner loop of every kernel on every instruction set: its instructions, and modelled cycles.

Found in the machine code itself: of a kernel's innermost loops, the one that multiplies most, or
where none does that with most vector instructions. What a turn does follows from the instructions
that multiply, so the report needs no word from the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from cpu.codegen.emit import Module, assembly
from cpu.codegen.isa import Isa
from cpu.codegen.loops import Loop, find_loops, flattened
from cpu.codegen.mca import Tool
from cpu.codegen.tables import TABLES
from cpu.kernels import codes, lookup, tile_attention
from cpu.kernels.activations import TERMS
from cpu.kernels.blocks import block_of
from cpu.kernels.families import families
from cpu.kernels.kernel import Kernel
from edge.errors import LutraError
from edge.formats import Format
from edge.graph import GateFunction
from edge.kvcache import CacheFormat
from edge.planes import QUAD, STEP, TILE

# Figures are for so many weights, or values where a kernel has none: one tile of outputs.
UNIT = 64

FORMATS = ("w1g64", "w2g64", "w3g64", "w4g32", "w4g64", "w4g128", "w4g64a", "w8g64", "ternary")

_FLOATS = ("f16", "f32")

_CACHES: tuple[CacheFormat, ...] = get_args(CacheFormat)
_GATES: tuple[str, ...] = get_args(GateFunction)

Kernels = Mapping[str, Kernel]

# By instruction set, the cores whose models stand for those that it meets.
CORES = {
    "arm-neon": ("cortex-a76",),
    "arm-dotprod": ("cortex-a76", "neoverse-n2"),
    "arm-i8mm": ("neoverse-n2", "cortex-x3"),
    "x86-avx2": ("haswell", "znver4"),
    "x86-avx512": ("skylake-avx512", "znver4"),
    "x86-vnni": ("icelake-server", "znver4"),
    "x86-amx": ("sapphirerapids",),
}

# Cores for which LLVM has no table, or an older relative's, and the server core of the same design.
_SAME_DESIGN = {"cortex-a76": "neoverse-n1", "cortex-x3": "neoverse-v2"}


@dataclass(frozen=True)
class Subject:
    """A loop to report: of which kernel, and how much a turn of it does.

    `count` tells the weights or values of a turn from the loop. `block` is the weights that share a
    scale, times the outputs of a tile: the loop around is then charged for once a block. The loop
    is one without loops in it, except where `parted`: other work is done beside. It is the one that
    has most of what `most` counts: where what multiplies is the lesser part, as the squares of a
    norm, vector instructions.
    """

    name: str
    kernel: Kernel
    what: Literal["weights", "values"]
    count: Callable[[Isa, Loop], float]
    block: int = 0
    parted: bool = False
    most: Callable[[Loop], int] = Loop.products
    read_bytes: float = 0


@dataclass(frozen=True)
class Row:
    """A loop as found: `work` weights or values a turn; the loop around, where it has a part."""

    subject: Subject
    isa: Isa
    loop: Loop
    work: float
    around: Loop | None

    @property
    def instructions(self) -> float:
        """For UNIT weights, what is done once a block included."""
        return sum(len(loop.instructions) * share for loop, share in self._parts())

    def cycles(self, tool: Tool, core: str) -> float:
        """For UNIT weights. Raises LutraError where the tool cannot say."""
        isa, model = self.isa, _SAME_DESIGN.get(core, core)
        return sum(
            share * tool.cycles(loop.instructions, isa.triple, model, isa.features)
            for loop, share in self._parts()
        )

    def _parts(self) -> Iterator[tuple[Loop, float]]:
        yield self.loop, UNIT / self.work
        if self.around is not None:
            yield self.around, UNIT / self.subject.block


def isas() -> list[Isa]:
    """All tables, ARM64 first."""
    return [isa for arch in sorted(TABLES) for isa in TABLES[arch].values()]


def subjects(isa: Isa, formats: Iterable[str] = FORMATS) -> list[Subject]:
    """What is reported of an instruction set."""
    parsed, tiles = [Format.parse(text) for text in formats], isa.tiles is not None
    others = [Format.parse(text) for text in ("w4g64", *_FLOATS)]
    made = families([*parsed, *others], matrix_unit=tiles, lookup_bits=isa.lookup_bits).values()
    kernels = {kernel.name: kernel for family in made for kernel in family}
    found = [_linear(form, isa, kernels) for form in parsed]
    found += [_lookup(form, kernels) for form in parsed if form.bits in isa.lookup_bits]
    found += [_batch(form, isa, kernels) for form in parsed]
    if tiles:
        found += [subject for form in parsed for subject in _gemm(form, kernels)]
        found += _of_tile_rows(kernels)
        found += [subject for form in _CACHES for subject in _tile_attention(form, kernels)]
    found += [
        Subject(f"linear {form}", kernels[f"linear_{form}"], "weights", _products(1))
        for form in _FLOATS
    ]
    found += [_embedding(form, kernels) for form in (*parsed, *map(Format.parse, _FLOATS))]
    found += _of_activations(kernels)
    return [*found, _tables(kernels["tables"])] if isa.lookup_bits else found


def _products(uses: int) -> Callable[[Isa, Loop], float]:
    """Work by its products, of which each weight has `uses`."""
    return lambda _, loop: loop.products() / uses


def _vectors(count: int = 1) -> Callable[[Isa, Loop], float]:
    """Work of `count` vectors of float32 a turn."""
    return lambda isa, _: count * isa.lanes


def _linear(form: Format, isa: Isa, kernels: Kernels) -> Subject:
    block, kernel = block_of(form) * TILE, kernels[f"linear_{form}"]
    read = 0 if form.bits in isa.lookup_bits else _read_bytes(form)
    name, count = f"linear {form}", _products(TERMS)
    return Subject(name, kernel, "weights", count, block, read_bytes=read)


def _lookup(form: Format, kernels: Kernels) -> Subject:
    """Each digit of each plane of 4 weights is a lookup."""
    block = block_of(form) * TILE

    def count(isa: Isa, loop: Loop) -> float:
        paired = isa.tables is not None and isa.tables.add_pairs is not None
        planes = form.bits + form.bits % 2 if paired else form.bits
        return QUAD * loop.lookups() / (lookup.DIGITS * planes)

    name, kernel, read = f"lookup {form}", kernels[f"lookup_{form}"], _read_bytes(form)
    return Subject(name, kernel, "weights", count, block, most=Loop.lookups, read_bytes=read)


def _read_bytes(form: Format) -> float:
    """Of UNIT weights with their share of scales, float16, and zeros, a byte."""
    scales = (2 + form.asymmetric) / form.group if form.granularity == "group" else 0
    return UNIT * (form.bits / 8 + scales)


def _tables(kernel: Kernel) -> Subject:
    return Subject("tables", kernel, "values", lambda *_: STEP, most=Loop.vectors)


def _batch(form: Format, isa: Isa, kernels: Kernels) -> Subject:
    """Many rows by integer dot products: those whose accumulators are in registers together."""
    rows, kernel = isa.together[0], kernels[f"batch_{form}"]
    count = _products(TERMS * rows)
    return Subject(f"batch {form}, multiply {rows} rows", kernel, "weights", count)


def _gemm(form: Format, kernels: Kernels) -> list[Subject]:
    """Of the matrix unit: tiles multiplied for 32 rows, and a piece of a panel filled."""
    kernel = kernels[f"gemm_{form}"]
    return [
        Subject(f"gemm {form}, multiply 32 rows", kernel, "weights", _products(32), parted=True),
        Subject(f"gemm {form}, expand", kernel, "weights", _products(1)),
    ]


def _embedding(form: Format, kernels: Kernels) -> Subject:
    """Of codes 8 at a time; floats one by one."""
    count = STEP if form.quantized else 1
    kernel = kernels[f"embedding_{form}"]
    return Subject(f"embedding {form}", kernel, "values", lambda *_: count)


def _of_tile_rows(kernels: Kernels) -> list[Subject]:
    """Rows for the matrix unit: a turn makes 32 values."""
    names = {"bfloat16": "bfloat16", "norm in bfloat16": "norm_bfloat16"}
    names |= {f"gate {function} in bfloat16": f"gate_{function}_bfloat16" for function in _GATES}
    return [
        Subject(title, kernels[name], "values", _vectors(2), most=Loop.vectors)
        for title, name in names.items()
    ]


def _tile_attention(form: CacheFormat, kernels: Kernels) -> list[Subject]:
    """Keys or values multiplied for 32 queries by all terms, and a query's scores made weights."""
    name, kernel = f"tile attention {form}", kernels[f"tile_attention_{form}"]
    terms = tile_attention.TERMS[form]
    count = _products(32 * terms * (terms + 1) // 2)
    return [
        Subject(f"{name}, multiply 32 queries", kernel, "values", count),
        Subject(f"{name}, soften", kernel, "values", _vectors(2), most=Loop.vectors),
    ]


def _of_activations(kernels: Kernels) -> list[Subject]:
    def values(title: str, name: str, count: Callable[[Isa, Loop], float]) -> Subject:
        return Subject(title, kernels[name], "values", count)

    def busiest(title: str, name: str, count: Callable[[Isa, Loop], float]) -> Subject:
        return Subject(title, kernels[name], "values", count, most=Loop.vectors)

    def quantized(isa: Isa, loop: Loop) -> float:
        del loop
        return max(8, isa.lanes)

    return [
        values("quantize", "quantize_b64", quantized),
        busiest("norm and quantize", "norm_quantize_b64", quantized),
        *(values(f"attention {c}, 4 queries", f"attention_{c}", _products(4)) for c in _CACHES),
        *(_append(form, kernels) for form in _CACHES),
        values("norm", "norm", _products(1)),
        values("rope", "rope", _vectors(2)),
        values("int8", "int8", _vectors()),
        values("add", "add", _vectors()),
        *(values(f"gate {function}", f"gate_{function}", _vectors()) for function in _GATES),
        values("softcap", "softcap", _vectors()),
        values("argmax", "argmax", _vectors()),
        *(_encode(bits, kernels) for bits in codes.BITS),
        *(values(f"decode u{bits}", f"decode_u{bits}", _vectors()) for bits in codes.BITS),
        values("add columns", "add_columns", _products(1)),
    ]


def _append(form: CacheFormat, kernels: Kernels) -> Subject:
    """Whole vectors of a row; what is left of it is taken one by one."""
    kernel = kernels[f"append_{form}"]
    return Subject(f"append {form}", kernel, "values", _vectors(), most=Loop.wide_vectors)


def _encode(bits: int, kernels: Kernels) -> Subject:
    """What does not fit is put aside in a branch, which has loops."""
    kernel = kernels[f"encode_u{bits}"]
    return Subject(f"encode u{bits}", kernel, "values", _vectors(), parted=True, most=Loop.vectors)


def find_row(isa: Isa, subject: Subject) -> Row:
    """Compile a kernel and find its loop. Raises LutraError where the code has another shape."""
    module = Module(isa)
    subject.kernel.emit(module)
    loops = flattened(find_loops(assembly(module)))
    if not loops:
        raise LutraError(f"{subject.name} on {isa.name}: its machine code has no loop")
    candidates = [loop for loop in loops if subject.parted or not loop.inner]
    found = max(candidates, key=lambda loop: (subject.most(loop), loop.vectors()))
    work = subject.count(isa, found)
    around = None
    if subject.block and work != subject.block:
        around = _around(loops, found, work, subject, isa)
    return Row(subject, isa, found, work, around)


def _around(loops: Sequence[Loop], found: Loop, work: float, subject: Subject, isa: Isa) -> Loop:
    """The loop of a block: the turns of those in it must make a whole block."""
    around = next(loop for loop in loops if found in loop.inner)
    parts = sum(subject.most(loop) == subject.most(found) for loop in around.inner)
    if subject.block % (parts * work):
        raise LutraError(
            f"{subject.name} on {isa.name}: {parts} loops of {work} weights make no block of "
            f"{subject.block}"
        )
    return around
