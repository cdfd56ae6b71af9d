"""The inner loop of every kernel on every instruction set: its instructions, and modelled cycles.

Found in the machine code itself: of a kernel's innermost loops, the one that multiplies most, or
where none does that with most vector instructions. What a turn does follows from the instructions
that multiply, so the report needs no word from the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from cpu.codegen.emit import Module, assembly
from cpu.codegen.isa import Isa
from cpu.codegen.loops import Loop, find_loops, flattened
from cpu.codegen.mca import Tool
from cpu.codegen.tables import TABLES
from cpu.kernels import (
    activations,
    argmax,
    attention,
    batch,
    codes,
    elementwise,
    embedding,
    gemm,
    linear,
    rows,
)
from cpu.kernels.blocks import block_of
from cpu.kernels.kernel import Kernel
from edge.errors import LutraError
from edge.formats import Format
from edge.planes import STEP, TILE

# Figures are for so many weights, or values where a kernel has none: one tile of outputs.
UNIT = 64

FORMATS = ("w2g64", "w3g64", "w4g32", "w4g64", "w4g128", "w4g64a", "w8g64", "ternary")

# By instruction set, the cores whose models stand for those that it meets.
CORES = {
    "arm-neon": ("cortex-a76",),
    "arm-dotprod": ("cortex-a76", "neoverse-n2"),
    "arm-i8mm": ("neoverse-n2",),
    "x86-avx2": ("haswell", "znver4"),
    "x86-avx512": ("skylake-avx512", "znver4"),
    "x86-vnni": ("icelake-server", "znver4"),
    "x86-amx": ("sapphirerapids",),
}


@dataclass(frozen=True)
class Subject:
    """A loop to report: of which kernel, and how much a turn of it does.

    `count` tells the weights or values of a turn from the loop. `block` is the weights that share a
    scale, times the outputs of a tile: the loop around is then charged for once a block. The loop
    is one without loops in it, except where `parted`: other work is done beside. Where what
    multiplies is the lesser part, as the squares of a norm, `multiplies` is false.
    """

    name: str
    kernel: Kernel
    what: Literal["weights", "values"]
    count: Callable[[Isa, Loop], float]
    block: int = 0
    parted: bool = False
    multiplies: bool = True


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
        isa = self.isa
        return sum(
            share * tool.cycles(loop.instructions, isa.triple, core, isa.features)
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
    parsed = [Format.parse(text) for text in formats]
    made = [_linear(form) for form in parsed] + [_batch(form, isa) for form in parsed]
    if isa.tiles is not None:
        made += [subject for form in parsed for subject in _gemm(form)]
    made += [
        Subject(f"linear {form}", linear.float_linear_kernel(form), "weights", _products(1))
        for form in map(Format.parse, ("f16", "f32"))
    ]
    return made + _of_activations()


def _products(uses: int) -> Callable[[Isa, Loop], float]:
    """Work by its products, of which each weight has `uses`."""
    return lambda _, loop: loop.products() / uses


def _vectors(count: int = 1) -> Callable[[Isa, Loop], float]:
    """Work of `count` vectors of float32 a turn."""
    return lambda isa, _: count * isa.lanes


def _linear(form: Format) -> Subject:
    block = block_of(form) * TILE
    count = _products(activations.TERMS)
    return Subject(f"linear {form}", linear.linear_kernel(form), "weights", count, block)


def _batch(form: Format, isa: Isa) -> Subject:
    """Many rows by integer dot products: those whose accumulators are in registers together."""
    rows, kernel = isa.together[0], batch.batch_kernel(form)
    count = _products(activations.TERMS * rows)
    return Subject(f"batch {form}, multiply {rows} rows", kernel, "weights", count)


def _gemm(form: Format) -> list[Subject]:
    """Of the matrix unit: tiles multiplied for 32 rows, and a piece of a panel filled."""
    kernel = gemm.gemm_kernel(form)
    return [
        Subject(f"gemm {form}, multiply 32 rows", kernel, "weights", _products(32), parted=True),
        Subject(f"gemm {form}, expand", kernel, "weights", _products(1)),
    ]


def _of_activations() -> list[Subject]:
    def values(name: str, kernel: Kernel, count: Callable[[Isa, Loop], float]) -> Subject:
        return Subject(name, kernel, "values", count)

    return [
        values("quantize", activations.quantize_kernel(64), lambda isa, _: max(8, isa.lanes)),
        Subject(
            "norm and quantize",
            activations.norm_quantize_kernel(64),
            "values",
            lambda isa, _: max(8, isa.lanes),
            multiplies=False,
        ),
        values("attention f32, 4 queries", attention.attention_kernel("f32"), _products(4)),
        values("attention f16, 4 queries", attention.attention_kernel("f16"), _products(4)),
        values("norm", rows.norm_kernel(), _products(1)),
        values("rope", rows.rope_kernel(), _vectors(2)),
        values("int8", rows.int8_kernel(), _vectors()),
        values("add", elementwise.add_kernel(), _vectors()),
        values("gate silu", elementwise.gate_kernel("silu"), _vectors()),
        values("gate gelu", elementwise.gate_kernel("gelu"), _vectors()),
        values("softcap", elementwise.softcap_kernel(), _vectors()),
        values("argmax", argmax.argmax_kernel(), _vectors()),
        values(
            "embedding w4g64",
            embedding.embedding_kernel(Format.parse("w4g64")),
            lambda *_: STEP,
        ),
        Subject(
            "encode u8", codes.encode_kernel(8), "values", _vectors(), parted=True, multiplies=False
        ),
        values("decode u8", codes.decode_kernel(8), _vectors()),
        values("add columns", codes.add_columns_kernel(), _products(1)),
    ]


def find_row(isa: Isa, subject: Subject) -> Row:
    """Compile a kernel and find its loop. Raises LutraError where the code has another shape."""
    module = Module(isa)
    subject.kernel.emit(module)
    loops = flattened(find_loops(assembly(module)))
    if not loops:
        raise LutraError(f"{subject.name} on {isa.name}: its machine code has no loop")
    candidates = [loop for loop in loops if subject.parted or not loop.inner]
    most = (lambda loop: loop.products()) if subject.multiplies else (lambda _: 0)
    found = max(candidates, key=lambda loop: (most(loop), loop.vectors()))
    work = subject.count(isa, found)
    around = None
    if subject.block and work != subject.block:
        around = _around(loops, found, work, subject, isa)
    return Row(subject, isa, found, work, around)


def _around(loops: Sequence[Loop], found: Loop, work: float, subject: Subject, isa: Isa) -> Loop:
    """The loop of a block: the turns of those in it must make a whole block."""
    around = next(loop for loop in loops if found in loop.inner)
    parts = sum(loop.products() == found.products() for loop in around.inner)
    if subject.block % (parts * work):
        raise LutraError(
            f"{subject.name} on {isa.name}: {parts} loops of {work} weights make no block of "
            f"{subject.block}"
        )
    return around
