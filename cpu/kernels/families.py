"""Which kernels are compiled together: those that every model may need, and those of a format.

A family does not depend on the model, so its machine code, once in the cache, serves every model
of the same formats.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import get_args

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
    lookup,
    rows,
    tile_attention,
    tile_rows,
)
from cpu.kernels.kernel import Kernel
from edge.digest import sha256
from edge.formats import GROUPS, Format
from edge.graph import GateFunction
from edge.kvcache import CacheFormat

COMMON = "common"

# To be raised where a kernel comes to mean something else by the same slots, or by what lies there.
REVISION = 2


def families(
    formats: Iterable[Format], *, matrix_unit: bool, lookup_bits: Collection[int] = ()
) -> dict[str, list[Kernel]]:
    """The kernels for tensors of these formats, by family.

    `lookup_bits` are the widths that are decoded by tables (`Isa.lookup_bits`).
    """
    made = {COMMON: _common(matrix_unit=matrix_unit)}
    if lookup_bits:
        made[COMMON].append(lookup.tables_kernel())
    for form in formats:
        made[str(form)] = _of_format(form, matrix_unit=matrix_unit)
        if form.bits in lookup_bits:
            made[str(form)].append(lookup.lookup_kernel(form))
    return made


def interface(
    formats: Iterable[Format], *, matrix_unit: bool, lookup_bits: Collection[int] = ()
) -> str:
    """What callers of these kernels rely on, in short: another's code would compute nonsense."""
    made = families(formats, matrix_unit=matrix_unit, lookup_bits=lookup_bits).values()
    slots = sorted({(kernel.name, kernel.slots) for kernels in made for kernel in kernels})
    return sha256(repr((REVISION, slots)).encode()).hexdigest()[:16]


def _common(*, matrix_unit: bool) -> list[Kernel]:
    kernels = [
        rows.norm_kernel(),
        rows.rope_kernel(),
        rows.int8_kernel(),
        elementwise.add_kernel(),
        elementwise.softcap_kernel(),
        *(elementwise.gate_kernel(function) for function in get_args(GateFunction)),
        *(attention.attention_kernel(form) for form in get_args(CacheFormat)),
        *(attention.append_kernel(form) for form in get_args(CacheFormat)),
        *(make(bits) for make in (codes.encode_kernel, codes.decode_kernel) for bits in codes.BITS),
        codes.add_columns_kernel(),
        *(activations.quantize_kernel(block) for block in GROUPS),
        *(activations.quantize_sliced_kernel(block) for block in GROUPS),
        *(activations.norm_quantize_kernel(block) for block in GROUPS),
        argmax.argmax_kernel(),
    ]
    if matrix_unit:
        kernels += [tile_attention.tile_attention_kernel(form) for form in get_args(CacheFormat)]
        kernels += _of_tile_rows()
    return kernels


def _of_tile_rows() -> list[Kernel]:
    gates = (tile_rows.gate_bfloat16_kernel(function) for function in get_args(GateFunction))
    return [tile_rows.bfloat16_kernel(), tile_rows.norm_bfloat16_kernel(), *gates]


def _of_format(form: Format, *, matrix_unit: bool) -> list[Kernel]:
    kernels = [embedding.embedding_kernel(form)]
    if not form.quantized:
        return [*kernels, linear.float_linear_kernel(form)]
    kernels += [linear.linear_kernel(form), batch.batch_kernel(form)]
    return [*kernels, gemm.gemm_kernel(form)] if matrix_unit else kernels
