"""A table of 16-byte vectors with products of pairs in plain vector code, for any machine."""

from __future__ import annotations

from dataclasses import replace

from cpu.codegen.isa import Isa
from cpu.codegen.language import I32, Code, Value
from tests.cpu.harness import ARM, isa_of


def with_pairs(host: Isa) -> Isa:
    """That of i8mm, compiled for another processor: quantizing and `batch` take no more of it."""
    return replace(
        isa_of(ARM[-1]),
        triple=host.triple,
        processor=host.processor,
        features=host.features,
        tuning=host.tuning,
        dot_pairs=dot_pairs,
    )


def dot_pairs(code: Code, accumulator: Value, codes: Value, activations: Value) -> Value:
    """`cpu.codegen.isa.PairProduct`, sum by sum."""
    rows, terms = (
        [vector.shuffle(range(start, start + 8)) for start in (0, 8)]
        for vector in (codes, activations)
    )
    made = code.constant(I32.of(4), 0)
    for lane in range(4):
        product = rows[lane // 2].to(I32, unsigned=True) * terms[lane % 2].to(I32)
        total = product.total().broadcast(4)
        made = made.shuffle([4 if i == lane else i for i in range(4)], total)
    return accumulator + made
