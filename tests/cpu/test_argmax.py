"""The best token of each thread's slice, and of all threads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cpu.kernels.argmax import argmax, argmax_kernel, best_of_threads
from tests.cpu.calls import Case, check, run
from tests.cpu.harness import isa_of, loaded, runnable
from tests.cpu.row_cases import argmax_case

every_target = pytest.mark.parametrize("target", runnable())

# Few values, so that many are equal.
scores = st.sampled_from([-np.inf, -1e30, -1.0, 0.0, 0.5, 3e38, np.inf])


@every_target
def test_the_lowest_of_the_best_is_found(target: str) -> None:
    isa = isa_of(target)
    functions = loaded(isa, [argmax_kernel()])

    @settings(max_examples=100)
    @given(x=arrays(np.float32, st.integers(1, 300), elements=scores), threads=st.integers(1, 4))
    def holds(x: np.ndarray, threads: int) -> None:
        case = argmax_case(x, threads, isa.lanes)
        token, score = best_of_threads(run(functions, case)["out"])
        assert score == x.max()
        if score > -np.inf:
            assert (token, score) == argmax(x)

    holds()


@every_target
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_each_thread_leaves_what_the_twin_finds_in_its_slice(target: str, threads: int) -> None:
    isa, rng = isa_of(target), np.random.default_rng(threads)
    functions = loaded(isa, [argmax_kernel()])
    for width in (1, 15, 63, 64, 65, 128, 300, 1000):
        case = argmax_case(rng.normal(size=width).astype(np.float32), threads, isa.lanes)
        check(case, run(functions, case))


@every_target
@pytest.mark.parametrize("place", [0, 7, 64, 130, 199])
def test_nan_is_noticed_wherever_it_is(target: str, place: int) -> None:
    isa = isa_of(target)
    x = np.linspace(-3, 3, 200, dtype=np.float32)
    x[place] = np.nan
    case: Case = argmax_case(x, 2, isa.lanes)
    _, score = best_of_threads(run(loaded(isa, [argmax_kernel()]), case)["out"])
    assert np.isnan(score)
