"""Kernel calls as data: made where the compiler is, run there or where only NumPy is.

A `Case` names buffers with what they hold, calls in order, and what some buffers must hold after
them. It is written to a file for an emulated machine, which runs it with `cpu.library`.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tests.cpu.redzones import Guarded, Walled

SIGNATURE = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


@dataclass(frozen=True)
class Call:
    """A kernel, and the value of each slot: a number, or a buffer's name for its address."""

    kernel: str
    slots: tuple[int | str, ...]


@dataclass
class Case:
    """Buffers, calls on them by `threads` threads one after the other, and what must come out.

    `expected` has buffers that must be equal to the bit, `near` those that may differ by `bounds`,
    both compared in the part that the expected array covers: its first rows and columns; where
    a bound is infinite, anything will do. What is left in `scratch` does not matter.
    """

    name: str
    buffers: dict[str, NDArray[Any]]
    calls: list[Call]
    threads: int = 1
    expected: dict[str, NDArray[Any]] = field(default_factory=dict)
    near: dict[str, NDArray[Any]] = field(default_factory=dict)
    bounds: dict[str, NDArray[Any]] = field(default_factory=dict)
    scratch: list[str] = field(default_factory=list)


class Functions(Protocol):
    """Machine code in this process: `image.Image` or `library.Library`."""

    def function(self, name: str, *arguments: Any) -> Callable[..., None]: ...


def run(functions: Functions, case: Case, walled: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """Run a case; buffers named in `walled` end at a wall. Returns what the buffers hold."""
    guarded = {
        name: (Walled if name in walled else Guarded)(name, content)
        for name, content in case.buffers.items()
    }
    for call in case.calls:
        values = [guarded[s].address if isinstance(s, str) else s for s in call.slots]
        slots = Guarded("slots", np.array(values, np.int64))
        function = functions.function(call.kernel, *SIGNATURE)
        for thread in range(case.threads):
            function(slots.address, thread, case.threads)
        assert not slots.damage(), slots.damage()
    damages = [buffer.damage() for buffer in guarded.values()]
    assert not any(damages), f"{case.name}: {damages}"
    return {name: buffer.content() for name, buffer in guarded.items()}


def check(case: Case, held: dict[str, NDArray[Any]]) -> None:
    """Compare what buffers hold after a run. Buffers that are no result must be as they were."""
    for name, want in case.expected.items():
        np.testing.assert_array_equal(_part(held[name], want), want, f"{case.name}: {name}")
    for name, want in case.near.items():
        error = np.abs(_part(held[name], want).astype(np.float64) - want)
        over = ~(error <= case.bounds[name]) & np.isfinite(case.bounds[name])  # NaN is over
        assert not over.any(), (
            f"{case.name}: {name} is off by up to {error[over].max()} in {over.sum()} places"
        )
    for name in case.buffers.keys() - case.expected.keys() - case.near.keys() - {*case.scratch}:
        np.testing.assert_array_equal(
            held[name].view(np.uint8), case.buffers[name].view(np.uint8), f"{case.name}: {name}"
        )


def _part(held: NDArray[Any], want: NDArray[Any]) -> NDArray[Any]:
    """The first of each axis, as many as wanted."""
    return held[tuple(slice(length) for length in want.shape)]


def save(path: Path, cases: list[Case]) -> None:
    """Write cases to one file."""
    arrays: dict[str, NDArray[Any]] = {}
    heads = []
    for number, case in enumerate(cases):
        groups = {
            "buffers": case.buffers,
            "expected": case.expected,
            "near": case.near,
            "bounds": case.bounds,
        }
        for group, members in groups.items():
            for name, array in members.items():
                arrays[f"{number}/{group}/{name}"] = array
        calls = [[call.kernel, list(call.slots)] for call in case.calls]
        head = {"name": case.name, "threads": case.threads, "calls": calls}
        heads.append(head | {"scratch": case.scratch})
    arrays["heads"] = np.frombuffer(json.dumps(heads).encode(), np.uint8)
    np.savez(path, **arrays)  # type: ignore[arg-type]


def load(path: Path) -> list[Case]:
    """Read what `save` wrote."""
    with np.load(path) as arrays:
        heads = json.loads(arrays["heads"].tobytes())
        cases = [
            Case(
                head["name"],
                {},
                [Call(kernel, tuple(slots)) for kernel, slots in head["calls"]],
                head["threads"],
                scratch=head["scratch"],
            )
            for head in heads
        ]
        for key in arrays.files:
            if key != "heads":
                number, group, name = key.split("/", 2)
                getattr(cases[int(number)], group)[name] = arrays[key]
    return cases
