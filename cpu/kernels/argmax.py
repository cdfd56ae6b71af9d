"""The best token of a step, so that greedy decoding copies no logits out.

Each thread looks at the tiles of 64 columns that it wrote as a linear or elementwise kernel, which
are in its own cache and need no barrier, and leaves its best on a line of its own.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cpu.codegen.language import F32, I32, I64, Code
from cpu.kernels.kernel import Arguments, Kernel, Thread, minimum
from edge.planes import TILE

# Bytes from one thread's result to the next: float32 score, int32 token.
LINE = 64


def argmax_kernel() -> Kernel:
    """x float32 [width] -> each thread's best score and its token, the lowest among equals.

    NaN in a thread's columns makes its score NaN; no columns, or none above -infinity, leave that
    and token 0.
    """

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        lanes, width = code.isa.lanes, a.integer("width")
        first, last = thread.share((width + (TILE - 1)) // TILE)
        order = code.constant(I32.of(lanes), list(range(lanes)))
        scores = code.variable(code.constant(F32.of(lanes), -math.inf))
        tokens = code.variable(code.constant(I32.of(lanes), 0))
        nans = code.variable(code.constant(I32.of(lanes), 0))
        with code.loop(first * TILE, minimum(last * TILE, width), lanes) as i:
            left = minimum(width - i, code.constant(I64, lanes)).to(I32)
            x = code.load(F32.of(lanes), a.pointer("x"), i * 4)
            x = (order < left.broadcast(lanes)).select(x, -math.inf)
            better = x > scores.get()
            scores.set(better.select(x, scores.get()))
            tokens.set(better.select(order + i.to(I32).broadcast(lanes), tokens.get()))
            nans.set(x.is_number().select(nans.get(), 1))
        best = scores.get().largest()
        equal = scores.get().equals(best.broadcast(lanes))
        token = equal.select(tokens.get(), (1 << 31) - 1).smallest()
        sane = nans.get().largest().equals(0)
        place = thread.index * LINE
        code.store(sane.select(best, math.nan), a.pointer("out"), place)
        code.store(token, a.pointer("out"), place + 4)

    return Kernel("argmax", ("x", "out", "width"), body)


def best_of_threads(out: NDArray[np.uint8]) -> tuple[int, float]:
    """The best of what threads left in `out` [threads, LINE]: token and score.

    Threads have ascending columns, and the first of the best is taken, NaN before all.
    """
    scores = out[:, :4].copy().view(np.float32)[:, 0]
    thread = int(np.argmax(scores))
    return int(out[thread, 4:8].copy().view(np.int32)[0]), float(scores[thread])


def argmax(x: NDArray[np.float32]) -> tuple[int, float]:
    """The twin, for all columns; of NaN the first is the token, which no one asks for."""
    token = int(np.argmax(x))
    return token, float(x[token])
