"""The native step: every thread walks a table of kernel calls and meets the others at barriers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpu.codegen.language import I64, POINTER, Code, Value

if TYPE_CHECKING:
    from cpu.codegen.emit import Module

NAME = "run_step"

# A row of the table: address of the kernel, address of its arguments, whether a barrier follows.
ROW_BYTES = 24

# The meeting place: how many have arrived, and how many times all have met, on lines of their own.
_ARRIVED, _MET = 0, 64
MEETING_BYTES = 128


# Turns of a spinning wait, some 50 microseconds, after which a thread offers its processor to
# others: the one it waits for may be among them.
_PATIENCE = 1000


def emit_step(module: Module) -> None:
    """Write `run_step(table, calls, meeting, give_way, thread, threads)` into a module.

    `give_way` is the address of a function without arguments that lets other threads run, such as
    the system's sched_yield; machine code refers to no library itself.
    """

    def body(
        code: Code,
        table: Value,
        calls: Value,
        meeting: Value,
        give_way: Value,
        thread: Value,
        threads: Value,
    ) -> None:
        with code.loop(0, calls) as index:
            row = index * ROW_BYTES
            kernel, arguments = (code.load(POINTER, table, row + 8 * i) for i in range(2))
            code.call_address(kernel, arguments, thread, threads)
            with code.when(code.load(I64, table, row + 16) > 0):
                _meet(code, meeting, threads, give_way)

    module.function(NAME, [POINTER, I64, POINTER, POINTER, I64, I64], body)


def _meet(code: Code, meeting: Value, threads: Value, give_way: Value) -> None:
    """Wait until all threads are here. The last one to arrive lets the others go."""
    turn = code.atomic_load(meeting, _MET)
    place = code.atomic_add(meeting, _ARRIVED, 1)
    with code.when(place.equals(threads - 1)):
        code.atomic_set(meeting, _ARRIVED, 0)
        code.atomic_add(meeting, _MET, 1)
    turns = code.variable(code.constant(I64, 0))
    with code.turns_until(lambda: code.atomic_load(meeting, _MET) > turn):
        code.isa.pause(code)
        turns.set(turns.get() + 1)
        with code.when(turns.get() > _PATIENCE):
            code.call_address(give_way)
