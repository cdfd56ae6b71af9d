"""A vector's first lanes, at the end of a page behind which nothing may be touched."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cpu.codegen.language import F16, F32, I8, I64, Code, Type
from cpu.codegen.masked import load_first, store_first
from cpu.kernels.kernel import Arguments, Kernel, Thread
from tests.cpu.calls import Case, check, run
from tests.cpu.harness import call, isa_of, loaded, runnable

LANES = 16


def copying(kind: Type) -> Kernel:
    """Copies the first `count` values of each row of 16, as whole vectors of rows."""

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        del thread
        count = a.integer("count")
        place = code.constant(I64, kind.byte_count)
        held = load_first(a.pointer("x"), kind.of(LANES), place, count)
        store_first(a.pointer("out"), held, place, count)
        code.store(held, a.pointer("whole"))

    return Kernel(f"copy_{kind.element}", ("x", "out", "whole", "count"), body)


@pytest.mark.parametrize("target", runnable())
@pytest.mark.parametrize(("kind", "dtype"), [(I8, np.int8), (F16, np.float16), (F32, np.float32)])
def test_lanes_behind_the_first_are_left_alone(target: str, kind: Type, dtype: type) -> None:
    kernel = copying(kind)
    functions = loaded(isa_of(target), [kernel])
    for count in (-3, 0, 1, 7, 15, 16, 20):
        taken = min(max(count, 0), LANES)
        x: NDArray[np.generic] = np.arange(1, taken + 2).astype(dtype)
        whole = np.zeros(LANES, dtype)
        whole[:taken] = x[1:]
        out = x.copy()
        out[0] = 0
        buffers = {"x": x, "out": np.zeros_like(x), "whole": np.full(LANES, 99, dtype)}
        made = call(kernel, {name: name for name in buffers} | {"count": count})
        case = Case(f"{kind} {count}", buffers, [made], expected={"out": out, "whole": whole})
        check(case, run(functions, case, walled=("x", "out")))
