"""The native step: calls in order, barriers that all threads wait at, nothing written beside."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cpu.codegen.emit import Module, object_code
from cpu.codegen.image import Image, link_image
from cpu.codegen.language import I64, Code
from cpu.kernels.kernel import Arguments, Kernel, Thread
from cpu.kernels.step import MEETING_BYTES, NAME, emit_step
from tests.cpu.harness import isa_of, runnable
from tests.cpu.redzones import Guarded

# 3 to this power fits 64 bits.
TURNS = 30


def add_own(code: Code, a: Arguments, thread: Thread) -> None:
    """parts[thread] += thread + 1."""
    place = thread.index * 8
    held = code.load(I64, a.pointer("parts"), place)
    code.store(held + thread.index + 1, a.pointer("parts"), place)


def sum_all(code: Code, a: Arguments, thread: Thread) -> None:
    """sums[thread] = sums[thread] * 3 + the sum of all parts: each turn must see all of them."""
    total = code.variable(code.constant(I64, 0))
    with code.loop(0, thread.count) as other:
        total.set(total.get() + code.load(I64, a.pointer("parts"), other * 8))
    place = thread.index * 8
    held = code.load(I64, a.pointer("sums"), place) * 3
    code.store(held + total.get(), a.pointer("sums"), place)


@pytest.mark.parametrize("target", runnable())
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_call_sees_what_was_before_the_barrier(target: str, threads: int) -> None:
    isa = isa_of(target)
    module = Module(isa)
    kernels = [
        Kernel("add_own", ("parts",), add_own),
        Kernel("sum_all", ("parts", "sums"), sum_all),
    ]
    for kernel in kernels:
        kernel.emit(module)
    emit_step(module)
    native = Image.of(link_image(object_code(module)))

    parts, sums = (Guarded(name, np.zeros(threads, np.int64)) for name in ("parts", "sums"))
    slots = [
        Guarded("slots", np.array(values, np.int64))
        for values in ([parts.address], [parts.address, sums.address])
    ]
    rows = [(native.address(k.name), s.address, 1) for k, s in zip(kernels, slots, strict=True)]
    table = Guarded("table", np.array(rows * TURNS, np.int64))
    meeting = Guarded("meeting", np.zeros(MEETING_BYTES // 8, np.int64))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    step = native.function(NAME, pointer, number, pointer, pointer, number, number)
    give_way = ctypes.cast(ctypes.CDLL(None).sched_yield, pointer).value
    calls = len(rows) * TURNS
    with ThreadPoolExecutor(threads) as pool:
        for index in range(threads):
            pool.submit(step, table.address, calls, meeting.address, give_way, index, threads)

    wanted = 0
    for turn in range(1, TURNS + 1):
        wanted = wanted * 3 + turn * threads * (threads + 1) // 2
    held = parts.content(), sums.content(), meeting.content()
    assert (held[0] == TURNS * np.arange(1, threads + 1)).all()
    assert (held[1] == wanted).all()
    assert held[2][0] == 0
    assert held[2][8] == calls
    for buffer in (parts, sums, table, meeting, *slots):
        assert not buffer.damage(), buffer.damage()
