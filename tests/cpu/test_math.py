"""Polynomials against NumPy. Those that kernels of activations use are held by these' tests."""

from __future__ import annotations

import numpy as np
import pytest

from cpu.codegen.language import F32, Code
from cpu.codegen.math import exp2
from cpu.kernels.kernel import Arguments, Kernel, Thread
from tests.cpu.calls import Case, check, run
from tests.cpu.harness import call, isa_of, loaded, runnable


@pytest.mark.parametrize("target", runnable())
def test_powers_of_two(target: str) -> None:
    def body(code: Code, a: Arguments, thread: Thread) -> None:
        del thread
        with code.loop(0, 4 * 4096, 64) as i:
            x = code.load(F32.of(16), a.pointer("x"), i)
            code.store(exp2(x), a.pointer("out"), i)

    kernel = Kernel("powers", ("x", "out"), body)
    x = np.linspace(-126, 127, 4096, dtype=np.float32)
    x[:4] = -126.6, -127, -1e30, -np.inf
    wanted = np.exp2(x.astype(np.float64))
    wanted[:4] = 0
    made = call(kernel, {"x": "x", "out": "out"})
    buffers = {"x": x, "out": np.full_like(x, np.nan)}
    # of large ones, nothing is lost to rounding: what is left of a whole number is exact
    bounds = {"out": 3e-7 * wanted}
    case = Case("powers", buffers, [made], near={"out": wanted}, bounds=bounds)
    check(case, run(loaded(isa_of(target), [kernel]), case))
