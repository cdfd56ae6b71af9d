"""Cases for kernels, each with what its NumPy twin computes, and the tables to run them with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from cpu.codegen.emit import Module, object_code
from cpu.codegen.image import Image, link_image
from cpu.codegen.isa import Isa
from cpu.codegen.language import I8, I32, Code
from cpu.codegen.tables import isa_for
from cpu.kernels import activations, batch, linear, lookup
from cpu.kernels.activations import PEAK, RowLayout
from cpu.kernels.blocks import block_of
from cpu.kernels.kernel import Arguments, Kernel, Thread
from edge.formats import Format
from edge.planes import STEP, TILE, Codes, Quantized, pack, pack_planes, tile_count, zeros_of
from edge.target import Target, this_machine
from tests.cpu.calls import Call, Case

Rows = NDArray[np.float32]

# Every kind of format: bits, what shares a scale, with and without zeros.
FORMATS = (
    *("w1g32", "w1g64a", "w1gc"),
    *("w2g32", "w2g64", "w2g64a", "w3g64", "w3g128a", "w4g32a", "w4g64", "w4g128", "w4gc", "w4gca"),
    *("w8g64", "w8g32a", "w8gc", "ternary", "ternaryg64"),
)

# Targets of every table of a processor.
X86 = ("cpu:x86_64,avx2", "cpu:x86_64,avx512", "cpu:x86_64,vnni", "cpu:x86_64,amx")
ARM = ("cpu:aarch64-android", "cpu:aarch64-android,dotprod", "cpu:aarch64-android,i8mm")


def runnable() -> list[str]:
    """Targets that this machine can run."""
    machine = this_machine()
    return [text for text in (*X86, *ARM) if not machine.mismatch(Target.parse(text))]


def isa_of(target: str) -> Isa:
    return isa_for(Target.parse(target))


def kernels_of(form: Format) -> list[Kernel]:
    """The kernels that a linear case calls: it quantizes, then multiplies by either."""
    quantize = activations.quantize_kernel(block_of(form))
    return [quantize, linear.linear_kernel(form), batch.batch_kernel(form)]


def object_of(isa: Isa, kernels: Sequence[Kernel]) -> bytes:
    """Object code of kernels; two of the same name are one."""
    module = Module(isa)
    for kernel in {kernel.name: kernel for kernel in kernels}.values():
        kernel.emit(module)
    return object_code(module)


def loaded(isa: Isa, kernels: Sequence[Kernel]) -> Image:
    """Kernels in this process."""
    return Image.of(link_image(object_of(isa, kernels)))


@cache
def linear_functions(target: str, form: str) -> Image:
    """The kernels of a linear case in this process."""
    return loaded(isa_of(target), kernels_of(Format.parse(form)))


def random_weights(form: Format, rows: int, width: int, rng: np.random.Generator) -> Quantized:
    """Codes of every value, scales of either sign, and zeros where the format has them."""
    groups = form.group_count(width)
    codes = rng.integers(0, form.levels, (rows, width), np.uint8)
    if form.granularity == "tensor":
        return Quantized(codes, np.array([[0.37]], np.float32))
    kind = np.float16 if form.granularity == "group" else np.float32
    scales = rng.normal(size=(rows, groups)).astype(kind)
    return Quantized(codes, scales, random_zeros(form, (rows, groups), rng))


def random_zeros(form: Format, shape: tuple[int, int], rng: np.random.Generator) -> Codes | None:
    """All zeros that are stored, where the format has its own."""
    most = form.levels * form.zero_parts
    return rng.integers(0, most, shape, np.uint8) if form.asymmetric else None


def linear_case(
    form: Format,
    weights: Quantized,
    x: Rows,
    *,
    threads: int = 1,
    private: int = 0,
    many: bool = False,
    tables: bool = False,
) -> Case:
    """Quantize x [count, width], multiply, add a bias; outputs to within rounding of float32.

    `private` is the bytes from a thread's copy of the quantized rows to the next; `many` takes the
    kernel for many rows, `tables` the one that looks up partial sums.
    """
    rows, width = weights.codes.shape
    count, tiles, block = len(x), tile_count(rows), block_of(form)
    layout = RowLayout(width, block)
    parts = pack(form, weights)
    bias = np.linspace(-1, 1, tiles * TILE, dtype=np.float32)
    quantize, few_rows, many_rows = kernels_of(form)
    multiply = many_rows if many else lookup.lookup_kernel(form) if tables else few_rows
    buffers = {
        # readable past its end by a vector
        "x": np.pad(x.reshape(-1), (0, 16), constant_values=np.float32(np.nan)),
        "quantized": np.zeros((count, layout.byte_count), np.uint8),
        "codes": parts["codes" if form.bits == 8 else "planes"],
        "scales": parts["scales"],
        "zeros": parts.get("zeros", np.zeros(1, np.uint8)),
        "bias": bias,
        "panels": np.zeros((threads, batch.PANEL_BYTES), np.uint8),
        "tables": np.zeros((count, lookup.tables_bytes(width)), np.uint8),
        "out": np.full((count, tiles * TILE), np.nan, np.float32),
    }
    shared: dict[str, int | str] = {
        "rows": count,
        "width": width,
        "padded": layout.padded,
        "private": private,
        "one_scale": 0,
    }
    first: dict[str, int | str] = {
        "x": "x",
        "x_stride": 4 * width,
        "x_private": 0,
        "out": "quantized",
        "out_stride": layout.byte_count,
        "scales": layout.scales,
        "sums": layout.sums,
    }
    second: dict[str, int | str] = {
        "x": "quantized",
        "x_stride": layout.byte_count,
        "x_private": private,
        "row_scales": layout.scales,
        "row_sums": layout.sums,
        "out": "out",
        "out_stride": 4 * tiles * TILE,
        "tiles": tiles,
        "tables_stride": lookup.tables_bytes(width),
    }
    second |= {name: name for name in ("codes", "scales", "zeros", "bias", "panels", "tables")}
    calls, expected = [call(quantize, shared | first)], {"quantized": quantized_rows(x, block)}
    if tables:
        of_tables = {"out": "tables", "out_stride": lookup.tables_bytes(width)}
        calls.append(call(lookup.tables_kernel(), shared | second | of_tables))
        values, _ = activations.quantize_rows(x, block)
        expected["tables"] = lookup.tables(values).reshape(count, -1)
    wanted = linear.linear(form, weights, x).astype(np.float64) + bias[:rows]
    return Case(
        name=f"{form} {rows}x{width} count {count} threads {threads}",
        buffers=buffers,
        calls=[*calls, call(multiply, shared | second)],
        threads=threads,
        expected=expected,
        near={"out": wanted},
        bounds={"out": 2.0**-24 * (layout.blocks + 8) * (magnitudes(form, weights, x) + 1)},
        scratch=["panels"],
    )


def whole_numbers(
    form: Format, rng: np.random.Generator, *, many: bool = False, tables: bool = False
) -> Case:
    """One block of weights with scale 1, and x such that nothing needs to be rounded.

    x has one value of the largest size, which makes its scale 1, among small ones that reach over
    both bytes, so that all sums stay under 2^24.
    """
    width = min(block_of(form), 100)
    weights = random_weights(form, 70, width, rng)
    weights = Quantized(weights.codes, np.ones_like(weights.scales), weights.zeros)
    x = rng.integers(-200, 200, (2, width)).astype(np.float32)
    x[:, 17] = PEAK, -PEAK
    case = linear_case(form, weights, x, many=many, tables=tables)
    case.buffers["bias"][:] = 0
    zeros = np.array(form.zero) if weights.zeros is None else zeros_of(form, weights.zeros)
    products = x.astype(np.float64) @ (weights.codes.astype(np.float64) - zeros).T
    assert np.abs(products).max() < 2**24
    scale = np.float32(PEAK) * np.float32(1 / PEAK)
    case.expected["out"] = (products * np.float64(scale)).astype(np.float32)
    case.near, case.bounds = {}, {}
    return case


def largest_sums(form: Format, *, most: bool, many: bool = False, tables: bool = False) -> Case:
    """All codes the largest or all the least, by the largest activations of either sign."""
    weights = random_weights(form, 64, 256, np.random.default_rng(6))
    weights.codes[:] = form.levels - 1 if most else 0
    x = np.full((2, 256), PEAK, np.float32) * np.array([[1], [-1]], np.float32)
    return linear_case(form, weights, x, many=many, tables=tables)


def float_case(
    kernel: Kernel, form: Format, rows: int, width: int, batch: int, threads: int
) -> Case:
    """Weights that are not quantized, by their plain product."""
    rng = np.random.default_rng(rows * width)
    kind = np.float16 if form.bits == 16 else np.float32
    values = rng.normal(size=(rows, width)).astype(kind)
    x = rng.normal(size=(batch, width)).astype(np.float32)
    bias = rng.normal(size=rows).astype(np.float32)
    wide, weights = x.astype(np.float64), values.astype(np.float64)
    slots: dict[str, int | str] = {
        "rows": batch,
        "width": width,
        "tiles": -(-rows // 64),
        "outputs": rows,
        "x_stride": 4 * width,
        "out_stride": 4 * rows,
        "x_private": 0,
    }
    slots |= {name: name for name in ("x", "values", "bias", "out")}
    return Case(
        f"{form} {rows}x{width} batch {batch} threads {threads}",
        {"x": x, "values": values, "bias": bias, "out": np.zeros((batch, rows), np.float32)},
        [call(kernel, slots)],
        threads=threads,
        near={"out": wide @ weights.T + bias},
        bounds={"out": 2.0**-24 * (width + 8) * (np.abs(wide) @ np.abs(weights).T + 1)},
    )


def call(kernel: Kernel, values: dict[str, int | str]) -> Call:
    """A call of a kernel with values by slot."""
    return Call(kernel.name, tuple(values[name] for name in kernel.slots))


def expand_case(
    isa: Isa, bits: int, rng: np.random.Generator, *, many: bool = False
) -> tuple[Case, list[Kernel]]:
    """Planes of one layout's rows by 8 weights, expanded to what the layout says."""
    expansion = isa.many if many else isa.few
    layout, size = expansion.layout(bits), isa.vector_bytes

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        del thread
        planes = [
            [
                code.load(I8.of(size), a.pointer("planes"), plane * TILE + first)
                for first in range(0, layout.row_count, size)
            ]
            for plane in range(bits)
        ]
        for place, vector in enumerate(expansion.expand(code, planes)):
            code.store(vector, a.pointer("out"), place * size)

    kernel = Kernel(f"expand_{bits}_{'many' if many else 'few'}", ("planes", "out"), body)
    codes = rng.integers(0, 1 << bits, (TILE, STEP), np.uint8)
    wanted = np.zeros((len(layout.slots), isa.lanes, 4), np.int64)
    for place, slot in enumerate(layout.slots):
        for lane in range(isa.lanes):
            half = lane % 2 if layout.alternating else layout.halves[place]
            for held in (slot, *layout.mixed_with(slot)):
                taken = codes[layout.rows[held][lane], 4 * half : 4 * half + 4].astype(np.int64)
                wanted[place, lane] += (taken - layout.offset) * layout.factors[held]
    case = Case(
        f"{kernel.name} {isa.name}",
        {"planes": pack_planes(codes, bits), "out": np.zeros(wanted.shape, np.uint8)},
        [call(kernel, {"planes": "planes", "out": "out"})],
        expected={"out": wanted.astype(np.uint8)},
    )
    return case, [kernel]


def dot_case(isa: Isa, rng: np.random.Generator, *, whole: bool) -> tuple[Case, list[Kernel]]:
    """Dot products of codes with activations of any value; `whole` codes are all of a byte."""
    size, lanes, count = isa.vector_bytes, isa.lanes, 20

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        del thread
        dot = isa.dot_bytes if whole else isa.dot
        with code.loop(0, count * size, size) as i:
            codes = code.load(I8.of(size), a.pointer("codes"), i)
            x = code.load(I8.of(size), a.pointer("x"), i)
            held = code.load(I32.of(lanes), a.pointer("sums"), i)
            if whole or isa.widening is None:
                made = dot(code, held, codes, x)
            else:
                zero = code.constant(isa.dot_sums, 0)
                made = isa.widening.widen(code, held, zero, dot(code, zero, codes, x))
            code.store(made, a.pointer("sums"), i)

    kernel = Kernel("dot_bytes" if whole else "dot", ("codes", "x", "sums"), body)
    most = 255 if whole else 16
    codes = rng.integers(0, most, (count, lanes, 4), np.uint8, endpoint=True)
    x = rng.integers(-128, 127, codes.shape, np.int8, endpoint=True)
    for place, (c, v) in enumerate([(most, 127), (most, -128), (0, -128), (0, 127)]):
        codes[place], x[place] = c, v
    start = rng.integers(-(2**20), 2**20, (count, lanes), np.int32)
    offset = isa.few.layout(8).offset if whole else 0
    products = ((codes.astype(np.int32) - offset) * x).sum(axis=2, dtype=np.int32)
    case = Case(
        f"{kernel.name} {isa.name}",
        {"codes": codes, "x": x, "sums": start},
        [call(kernel, {"codes": "codes", "x": "x", "sums": "sums"})],
        expected={"sums": start + products},
    )
    return case, [kernel]


def widening_case(isa: Isa, bits: int, *, many: bool) -> tuple[Case, list[Kernel]]:
    """As many products as are said to fit int16, of the largest codes and activations."""
    assert isa.widening is not None
    widening, layout = isa.widening, (isa.many if many else isa.few).layout(bits)
    count = widening.steps(layout, bits) * layout.products_a_step()
    most, lanes = layout.largest_code(bits), isa.lanes
    pairs = [(high, low) for high in (-128, 127) for low in (-128, 127)]

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        del thread
        zero, kind = code.constant(isa.dot_sums, 0), I8.of(isa.vector_bytes)
        codes = code.load(kind, a.pointer("codes"))
        with code.loop(0, len(pairs)) as i:
            terms = [code.variable(zero) for _ in range(2)]
            with code.loop(0, count):
                for term, sums in enumerate(terms):
                    x = code.load(I8, a.pointer("x"), i * 2 + term).broadcast(kind.lanes)
                    sums.set(isa.dot(code, sums.get(), codes, x))
            start = code.constant(I32.of(lanes), 3)
            total = widening.widen(code, start, terms[0].get(), terms[1].get())
            code.store(total, a.pointer("out"), i * isa.vector_bytes)

    kernel = Kernel(f"widen_{bits}", ("codes", "x", "out"), body)
    wanted = [[3 + 4 * count * most * (256 * high + low)] * lanes for high, low in pairs]
    case = Case(
        f"{kernel.name} {isa.name}",
        {
            "codes": np.full(isa.vector_bytes, most, np.uint8),
            "x": np.array(pairs, np.int8),
            "out": np.zeros((len(pairs), lanes), np.int32),
        },
        [call(kernel, {"codes": "codes", "x": "x", "out": "out"})],
        expected={"out": np.array(wanted, np.int32)},
    )
    return case, [kernel]


def magnitudes(form: Format, weights: Quantized, x: Rows) -> NDArray[np.float64]:
    """Sums of the sizes of all products, also those with zeros: what rounding errors go by."""
    width = x.shape[1]
    group = np.arange(width) // form.group_size(width)
    zeros = np.array(form.zero)
    if weights.zeros is not None:
        zeros = np.abs(zeros_of(form, weights.zeros))[:, group]
    spread = (weights.codes + zeros.astype(np.float64)) * np.abs(weights.scales[:, group])
    return np.abs(x.astype(np.float64)) @ spread.T


def quantized_rows(
    x: Rows, block: int, made_of: tuple[NDArray[np.int16], Rows] | None = None
) -> NDArray[np.uint8]:
    """What the quantizing kernel must leave, by its twin or of given values and scales."""
    batch, width = x.shape
    layout = RowLayout(width, block)
    values, scales = made_of or activations.quantize_rows(x, block)
    made = np.zeros((batch, layout.byte_count), np.uint8)
    wide = values.astype(np.int32)
    high = (wide + 128) >> 8
    made[:, :width] = high.astype(np.int8).view(np.uint8)
    low = (wide - 256 * high).astype(np.int8)
    made[:, layout.padded : layout.padded + width] = low.view(np.uint8)
    blocks = np.pad(wide, ((0, 0), (0, layout.blocks * block - width)))
    halves = blocks.reshape(batch, layout.blocks, block // 8, 2, 4).sum(axis=(2, 4), dtype=np.int32)
    made[:, layout.scales : layout.sums] = scales.view(np.uint8)
    end = layout.sums + 8 * layout.blocks
    made[:, layout.sums : end] = halves.reshape(batch, -1).view(np.uint8)
    return made
