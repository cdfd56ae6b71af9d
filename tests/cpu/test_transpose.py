"""Words by words, on every table that this machine runs. Of bits, `test_isa` tells."""

from __future__ import annotations

import numpy as np
import pytest

from cpu.codegen.language import I32, Code
from cpu.codegen.transpose import transposed_words
from cpu.kernels.kernel import Arguments, Kernel, Thread
from tests.cpu.calls import Case, check, run
from tests.cpu.harness import call, isa_of, loaded, runnable


@pytest.mark.parametrize("target", runnable())
def test_words_change_places(target: str) -> None:
    def body(code: Code, a: Arguments, thread: Thread) -> None:
        del thread
        rows = [code.load(I32.of(16), a.pointer("x"), 64 * i) for i in range(16)]
        for i, made in enumerate(transposed_words(rows)):
            code.store(made, a.pointer("out"), 64 * i)

    kernel = Kernel("transposed", ("x", "out"), body)
    x = np.arange(256, dtype=np.int32).reshape(16, 16)
    made = call(kernel, {"x": "x", "out": "out"})
    case = Case("words", {"x": x, "out": np.zeros_like(x)}, [made], expected={"out": x.T})
    check(case, run(loaded(isa_of(target), [kernel]), case))
