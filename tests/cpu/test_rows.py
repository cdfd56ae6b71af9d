"""Norms, rotations, rounding, gates and lookups against their twins, between red zones."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest

from cpu.codegen.language import F32, Code, Value
from cpu.kernels import elementwise, embedding, rows
from cpu.kernels.kernel import Arguments, Kernel, Thread
from edge.formats import Format
from tests.cpu.calls import Case, Functions, check, run
from tests.cpu.harness import FORMATS, isa_of, loaded, runnable
from tests.cpu.row_cases import (
    elementwise_cases,
    embedding_case,
    int8_case,
    norm_case,
    rope_case,
)

every_target = pytest.mark.parametrize("target", runnable())

THREADS = ((1, False), (3, False), (2, True))


def hold(target: str, kernel: Kernel, cases: list[Case]) -> None:
    functions = loaded(isa_of(target), [kernel])
    for case in cases:
        check(case, run(functions, case))


@every_target
@pytest.mark.parametrize(("threads", "private"), THREADS)
def test_norms(target: str, threads: int, private: bool) -> None:
    lanes, shapes = (
        isa_of(target).lanes,
        ((1, 1, 1), (3, 1, 33), (2, 4, 20), (5, 1, 172), (4, 2, 64)),
    )
    cases = [norm_case(lanes, *shape, threads=threads, private=private) for shape in shapes]
    hold(target, rows.norm_kernel(), cases)


@every_target
@pytest.mark.parametrize(("threads", "private"), THREADS)
def test_rotations(target: str, threads: int, private: bool) -> None:
    shapes = ((1, 1, 2, 1), (3, 2, 20, 10), (2, 3, 64, 32), (4, 1, 80, 20), (2, 2, 70, 33))
    cases = [rope_case(*shape, threads=threads, private=private) for shape in shapes]
    hold(target, rows.rope_kernel(), cases)


@every_target
@pytest.mark.parametrize(("threads", "private"), THREADS)
def test_rounding_to_8_bits(target: str, threads: int, private: bool) -> None:
    lanes, shapes = isa_of(target).lanes, ((1, 1), (3, 33), (2, 64), (4, 172))
    cases = [int8_case(lanes, *shape, threads=threads, private=private) for shape in shapes]
    hold(target, rows.int8_kernel(), cases)


@every_target
@pytest.mark.parametrize("threads", [1, 3])
def test_element_by_element(target: str, threads: int) -> None:
    pairs = elementwise_cases(threads)
    functions = loaded(isa_of(target), [kernel for _, kernels in pairs for kernel in kernels])
    for case, _ in pairs:
        check(case, run(functions, case))


def look_up(functions: Functions, cases: list[Case]) -> None:
    for case in cases:
        check(case, run(functions, case, walled=("codes", "scales", "zeros", "tokens")))


@every_target
@pytest.mark.parametrize("form", [*FORMATS, "f16", "f32"])
def test_lookups_of_rows_at_the_end_of_a_mapping(target: str, form: str) -> None:
    parsed = Format.parse(form)
    functions = loaded(isa_of(target), [embedding.embedding_kernel(parsed)])
    shapes = ((1, 1), (64, 4), (70, 33), (64, 36), (130, 172))
    cases = [embedding_case(parsed, *shape, threads=t) for shape in shapes for t in (1, 3)]
    child = multiprocessing.get_context("fork").Process(target=look_up, args=(functions, cases))
    child.start()
    child.join()
    assert child.exitcode == 0, f"ended with {child.exitcode} (-11: read behind the table)"


def one_further(kernel: Kernel) -> Kernel:
    """The kernel, which then writes the element behind the last row."""

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        kernel.body(code, a, thread)
        end: Value = a.integer("rows") * a.integer("out_stride")
        code.store(code.constant(F32, 1.0), a.pointer("out"), end)

    return replace(kernel, body=body)


@pytest.mark.parametrize(
    "kernel",
    [elementwise.add_kernel(), embedding.embedding_kernel(Format.parse("w4g64"))],
    ids=lambda kernel: kernel.name,
)
def test_one_element_too_far_is_seen(kernel: Kernel) -> None:
    """That the red zones work: a kernel that writes 4 bytes behind its output fails."""
    if kernel.name == "add":
        case = next(c for c, kernels in elementwise_cases(1) if kernels[0].name == "add")
    else:
        case = embedding_case(Format.parse("w4g64"), 64, 40)
    target = runnable()[0]
    check(case, run(loaded(isa_of(target), [kernel]), case))
    with pytest.raises(AssertionError, match="out: 4 bytes behind it written, first at 0"):
        run(loaded(isa_of(target), [one_further(kernel)]), case)


def test_a_result_that_is_no_number_is_off() -> None:
    case = Case("nan", {}, [], near={"out": np.zeros(2)}, bounds={"out": np.full(2, 1.0)})
    with pytest.raises(AssertionError, match="off by up to nan in 1 places"):
        check(case, {"out": np.array([0.5, np.nan], np.float32)})
