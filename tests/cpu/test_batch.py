"""Many rows by products of pairs against the twin; `test_linear` has other instruction sets."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu.codegen.image import Image
from edge.formats import Format
from tests.cpu.calls import check, run
from tests.cpu.harness import (
    FORMATS,
    isa_of,
    kernels_of,
    largest_sums,
    linear_case,
    loaded,
    random_weights,
    runnable,
    whole_numbers,
)
from tests.cpu.pairs import with_pairs

every_format = pytest.mark.parametrize("form", FORMATS)


@cache
def functions(form: str) -> Image:
    """What quantizes and what multiplies many rows, for this machine."""
    quantize, _, multiply = kernels_of(Format.parse(form))
    return loaded(with_pairs(isa_of(runnable()[0])), [quantize, multiply])


@every_format
@settings(max_examples=5)
@given(
    rows=st.integers(1, 150),
    width=st.integers(1, 600),
    batch=st.integers(1, 17),
    threads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_any_shape_is_as_the_twin(
    form: str, rows: int, width: int, batch: int, threads: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weights = random_weights(Format.parse(form), rows, width, rng)
    x = rng.normal(size=(batch, width)).astype(np.float32)
    case = linear_case(Format.parse(form), weights, x, threads=threads, many=True)
    check(case, run(functions(form), case))


@every_format
def test_integers_are_exact(form: str) -> None:
    case = whole_numbers(Format.parse(form), np.random.default_rng(5), many=True)
    check(case, run(functions(form), case))


@every_format
@pytest.mark.parametrize("most", [False, True], ids=["least", "most"])
def test_the_largest_sums_do_not_overflow(form: str, most: bool) -> None:
    case = largest_sums(Format.parse(form), most=most, many=True)
    check(case, run(functions(form), case))
