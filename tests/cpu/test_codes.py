"""Kernels between float values and an NPU's codes against their twins."""

from __future__ import annotations

import pytest

from tests.cpu.calls import check, run
from tests.cpu.code_cases import code_cases
from tests.cpu.harness import isa_of, loaded, runnable


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("target", runnable())
def test_every_shape_is_as_its_twin(target: str, threads: int) -> None:
    cases = list(code_cases(threads))
    functions = loaded(isa_of(target), [kernel for _, kernel in cases])
    for case, _ in cases:
        check(case, run(functions, case))
