"""The vector language against NumPy: every operation, on every table that this machine runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cpu.codegen.cache import sealed
from cpu.codegen.emit import Module, assembly, object_code
from cpu.codegen.image import Image, link_image
from cpu.codegen.language import F16, F32, I8, I16, I32, I64, POINTER, Code, Type, Value
from cpu.kernels.kernel import Arguments, Kernel, Thread
from tests.cpu.calls import Call, Case, check, run
from tests.cpu.harness import isa_of, loaded, runnable

TARGETS = runnable()
LANES = 16
NUMPY = {I8: np.int8, I16: np.int16, I32: np.int32, I64: np.int64, F16: np.float16, F32: np.float32}
Array = NDArray[Any]


@dataclass(frozen=True)
class Operation:
    """What is computed of one or two vectors of `kind`, and what NumPy computes."""

    kind: Type
    made: Callable[[Value, Value], Value]
    wanted: Callable[[Array, Array], Array]


def divided(a: Array, b: Array) -> Array:
    return (a.view(np.uint32) // b.view(np.uint32)).view(np.int32)


OPERATIONS = {
    "add": Operation(I32, lambda a, b: a + b, lambda a, b: a + b),
    "subtract": Operation(F32, lambda a, b: a - b, lambda a, b: a - b),
    "multiply": Operation(I16, lambda a, b: a * b, lambda a, b: a * b),
    "divide": Operation(F32, lambda a, b: a / b, lambda a, b: a / b),
    "divide unsigned": Operation(I32, lambda a, b: a // b, divided),
    "and or xor": Operation(I8, lambda a, b: (a & b) | (a ^ 15), lambda a, b: (a & b) | (a ^ 15)),
    "shift left": Operation(I32, lambda a, b: a << 3, lambda a, b: a << 3),
    "shift right": Operation(
        I16, lambda a, b: a >> 3, lambda a, b: (a.view(np.uint16) >> 3).view(np.int16)
    ),
    "shift right with its sign": Operation(
        I32, lambda a, b: a.signed_shift(3), lambda a, b: a >> 3
    ),
    "negate": Operation(F32, lambda a, b: -a, lambda a, b: -a),
    "number on the right": Operation(F32, lambda a, b: a * 0.5 + 3, lambda a, b: a * 0.5 + 3),
    "scalar on the right": Operation(I32, lambda a, b: a + b.lane(2), lambda a, b: a + b[2]),
    "smaller": Operation(F32, lambda a, b: a.minimum(b), np.minimum),
    "larger": Operation(I32, lambda a, b: a.maximum(b), np.maximum),
    "select": Operation(
        F32, lambda a, b: (a > b).select(a, -1.0), lambda a, b: np.where(a > b, a, np.float32(-1))
    ),
    "compare": Operation(
        I32, lambda a, b: (a <= 3).select(a, b), lambda a, b: np.where(a <= 3, a, b)
    ),
    "equal": Operation(I8, lambda a, b: a.equals(b).select(a, 0), lambda a, b: a * (a == b)),
    "fma": Operation(
        F32,
        lambda a, b: a.fma(b, a),
        lambda a, b: (a.astype(np.float64) * b + a).astype(np.float32),
    ),
    "square root": Operation(
        F32, lambda a, b: a.magnitude().sqrt(), lambda a, b: np.sqrt(np.abs(a))
    ),
    "round": Operation(F32, lambda a, b: (a * 0.5).round(), lambda a, b: np.rint(a * 0.5)),
    "narrow": Operation(I32, lambda a, b: a.to(I8), lambda a, b: a.astype(np.int8)),
    "widen": Operation(I8, lambda a, b: a.to(I32), lambda a, b: a.astype(np.int32)),
    "widen unsigned": Operation(
        I8, lambda a, b: a.to(I16, unsigned=True), lambda a, b: a.view(np.uint8).astype(np.int16)
    ),
    "to float": Operation(I32, lambda a, b: a.to(F32), lambda a, b: a.astype(np.float32)),
    "to half": Operation(F32, lambda a, b: a.to(F16), lambda a, b: a.astype(np.float16)),
    "from half": Operation(F16, lambda a, b: a.to(F32), lambda a, b: a.astype(np.float32)),
    "truncate": Operation(F32, lambda a, b: a.to(I32), lambda a, b: a.astype(np.int32)),
    "same bits": Operation(F32, lambda a, b: a.cast(I32.of(LANES)), lambda a, b: a.view(np.int32)),
    "shuffle": Operation(
        I8,
        lambda a, b: a.shuffle([3, 20, 0, 31] * 4, b),
        lambda a, b: np.concatenate([a, b])[[3, 20, 0, 31] * 4],
    ),
    "total": Operation(
        I32, lambda a, b: a.total().broadcast(4), lambda a, b: np.tile(a.sum(dtype=a.dtype), 4)
    ),
    "largest": Operation(
        F32, lambda a, b: a.largest().broadcast(4), lambda a, b: np.tile(a.max(), 4)
    ),
}


def operands(kind: Type, rng: np.random.Generator) -> list[Array]:
    """Two vectors without zeros, a few of their elements equal."""
    if kind.floating:
        pair = rng.normal(scale=100, size=(2, LANES))
    else:
        most = min(2 ** (8 * kind.byte_count - 1), 2**40)
        pair = rng.integers(-most, most, (2, LANES))
    pair[pair == 0] = 1
    pair[1, ::4] = pair[0, ::4]
    return list(pair.astype(NUMPY[kind]))


def one(
    name: str, buffers: dict[str, Array], body: Callable[..., None], out: Array
) -> tuple[Case, Kernel]:
    """A case of one kernel: `body(code, *pointers, thread)`; the last pointer is to the result."""
    names = (*buffers, "out")

    def write(code: Code, a: Arguments, thread: Thread) -> None:
        body(code, *(a.pointer(n) for n in names), thread)

    kernel = Kernel(name.replace(" ", "_"), names, write)
    held = buffers | {"out": np.zeros_like(out)}
    return Case(name, held, [Call(kernel.name, names)], expected={"out": out}), kernel


@pytest.mark.parametrize("target", TARGETS)
def test_operations_are_numpys(target: str) -> None:
    rng = np.random.default_rng(4)
    cases, kernels = [], []
    for name, operation in OPERATIONS.items():
        a, b = operands(operation.kind, rng)
        wanted = operation.wanted(a, b)

        def body(
            code: Code, x: Value, y: Value, out: Value, _: Thread, operation: Operation = operation
        ) -> None:
            kind = operation.kind.of(LANES)
            code.store(operation.made(code.load(kind, x), code.load(kind, y)), out)

        case, kernel = one(name, {"a": a, "b": b}, body, wanted)
        cases.append(case)
        kernels.append(kernel)
    functions = loaded(isa_of(target), kernels)
    for case in cases:
        check(case, run(functions, case))


def fibonacci(code: Code, count: Value, out: Value, _: Thread) -> None:
    """The first numbers, by variables in a loop; those above 20 are left out."""
    a, b = code.variable(code.constant(I64, 0)), code.variable(code.constant(I64, 1))
    with code.loop(0, code.load(I64, count)) as i:
        following = a.get() + b.get()
        a.set(b.get())
        b.set(following)
        with code.when(a.get() <= 20):
            code.store(a.get(), out, i * 8)


def halve(code: Code, start: Value, out: Value, _: Thread) -> None:
    """How many times a number can be halved before it is 0."""
    left, turns = code.variable(code.load(I64, start)), code.variable(code.constant(I64, 0))
    with code.turns_until(lambda: left.get().equals(0)):
        left.set(left.get() >> 1)
        turns.set(turns.get() + 1)
    code.store(turns.get(), out)


@pytest.mark.parametrize("target", TARGETS)
def test_loops_and_conditions(target: str) -> None:
    cases = [
        one("fibonacci", {"n": np.array([n])}, fibonacci, np.array(wanted))
        for n, wanted in ((0, [0]), (1, [1]), (9, [1, 1, 2, 3, 5, 8, 13, 0, 0]))
    ]
    cases += [one("halve", {"n": np.array([n])}, halve, np.array([w])) for n, w in ((0, 0), (9, 4))]
    functions = loaded(isa_of(target), [kernel for _, kernel in cases])
    for case, _ in cases:
        check(case, run(functions, case))


@pytest.mark.parametrize("target", TARGETS)
def test_threads_share_all_of_the_work_and_no_piece_twice(target: str) -> None:
    def body(code: Code, total: Value, out: Value, thread: Thread) -> None:
        first, last = thread.share(code.load(I64, total))
        with code.loop(first, last) as i:
            code.store(code.load(I64, out, i * 8) + 1, out, i * 8)

    functions = None
    for total in (0, 1, 2, 3, 7, 64):
        case, kernel = one("threads", {"n": np.array([total])}, body, np.ones(total, np.int64))
        functions = functions or loaded(isa_of(target), [kernel])
        for threads in (1, 2, 3, 5):
            case.threads = threads
            check(case, run(functions, case))


def test_mixed_types_are_refused() -> None:
    def body(code: Code, pointer: Value) -> None:
        number = code.load(I32.of(4), pointer)
        with pytest.raises(AssertionError):
            number + code.load(F32.of(4), pointer)
        with pytest.raises(TypeError, match="no such operation"):
            number / 2
        with pytest.raises(TypeError, match="no such operation"):
            number.to(F32) & 1

    Module(isa_of(TARGETS[0])).function("mixed", [POINTER], body)


def copying(code: Code, source: Value, target: Value) -> None:
    with code.loop(0, 1 << 20) as i:
        code.store(code.load(I64, source, i * 8), target, i * 8)
        code.store(code.constant(I64, 0), source, i * 8)


@pytest.mark.parametrize("target", ["cpu:x86_64,avx2", "cpu:aarch64"])
def test_loops_that_copy_or_clear_call_no_library(target: str) -> None:
    module = Module(isa_of(target))
    module.function("copying", [POINTER, POINTER], copying)
    assert not re.search(r"mem(cpy|set|move)", assembly(module))


def test_the_cache_answers_the_same_source_for_the_same_target(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(target: str, factor: int) -> bytes:
        module = Module(isa_of(target))
        module.function(
            "scale", [POINTER], lambda code, p: code.store(code.load(I32, p) * factor, p)
        )
        return object_code(module, tmp_path)

    first = made("cpu:x86_64,avx2", 3)
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(sealed(b"kept"))
    assert made("cpu:x86_64,avx2", 3) == b"kept"
    for damaged in (sealed(first)[:-1], b"\0" + sealed(first)[1:], b""):
        entry.write_bytes(damaged)
        assert made("cpu:x86_64,avx2", 3) == first
        assert entry.read_bytes() == sealed(first)
    assert made("cpu:x86_64,avx2", 5) != first
    made("cpu:aarch64", 3)
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(KeyError):
        Image.of(link_image(made(TARGETS[0], 7))).address("absent")
