"""Attention on a matrix unit against its twin: AMX code, and a unit that is made of vector code."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from cpu.kernels import tile_attention
from edge.graph import Cache
from edge.kvcache import CacheFormat
from tests.cpu.attention_cases import SHAPES, Shape, attention_case
from tests.cpu.calls import Case, check, run
from tests.cpu.harness import call, loaded
from tests.cpu.test_gemm import UNITS, unit

# Beside those of the other kernel: whole blocks and one more, parts of heads, spans and windows
# that begin between tiles, so that queries of a block see nothing of a span.
TILE_SHAPES = (
    *(shape for shape in SHAPES if not shape.private),
    Shape(2, 2, 64, 0, 32),
    Shape(3, 3, 40, 31, 33, threads=2),
    Shape(3, 1, 16, 0, 100, threads=4),
    Shape(1, 1, 32, 250, 300),
    Shape(2, 1, 24, 333, 70, window=40, threads=2),
    Shape(1, 1, 130, 700, 64, window=290, softcap=20.0),
)


def tile_case(form: CacheFormat, shape: Shape) -> Case:
    """Of a cache that holds all, what `attention_case` has."""
    whole, (both,) = attention_case(form, shape)
    kernel = tile_attention.tile_attention_kernel(form)
    cache = Cache(shape.kv_heads, shape.head_dim)
    queries = shape.rows * shape.heads // shape.kv_heads
    work = tile_attention.work_slots(cache, form, queries, shape.threads)
    size = work["scratch_stride"] * shape.threads
    buffers = {name: whole.buffers[name] for name in ("query", "out")} | whole.expected
    buffers["scratch"] = np.full(size // 4, np.nan, np.float32)
    slots = dict(zip(both.slots, whole.calls[0].slots, strict=True))
    made = call(kernel, slots | work)
    return Case(
        f"tile {whole.name}",
        buffers,
        [made],
        shape.threads,
        near={"out": whole.near["out"]},
        bounds={"out": whole.bounds["out"]},
        scratch=["scratch"],
    )


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("form", get_args(CacheFormat))
def test_every_shape_is_as_its_twin(name: str, form: CacheFormat) -> None:
    functions = loaded(unit(name), [tile_attention.tile_attention_kernel(form)])
    for shape in TILE_SHAPES:
        case = tile_case(form, shape)
        check(case, run(functions, case))
        check(case, run(functions, case, walled=("query", "keys", "values", "out")))
