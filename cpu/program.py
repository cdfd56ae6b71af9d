"""A bundle's graph as native code: tables of kernel calls, and what changes from step to step."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpu.calls import Dynamic, Place
from cpu.kernels import argmax
from cpu.kernels.step import MEETING_BYTES
from cpu.lowering import FEW_ROWS, Lowering
from cpu.memory import Memory
from cpu.native import Native
from cpu.threads import Team
from cpu.values import PRIVATE_ROWS
from edge.bundle import Bundle
from edge.graph import Rope
from edge.kvcache import CacheFormat, KVCache
from edge.target import Target

# The longest chunk: enough rows to use each weight often, few enough for the caches. Of products on
# vectors half as many are as fast (measured, to 2 %), and their values take half the memory.
MATRIX_ROWS, VECTOR_ROWS = 256, 128


@dataclass(frozen=True)
class _Shown:
    """The cache whose addresses a table has, as its arrays were."""

    cache: weakref.ref[KVCache]
    arrays: tuple[int, int]


class Table:
    """The calls of a step in memory, as `kernels.step` walks them, and their changing slots.

    What lowering leaves besides is let go: it takes several times as much.
    """

    def __init__(self, lowering: Lowering, native: Native) -> None:
        lowered = lowering.run()
        self.tokens, self.best = lowering.tokens_address, lowering.best_address
        self.scores = lowering.places[lowering.graph.last.out]
        self.arguments = np.array(lowered.arguments)
        self.rows = np.array(
            [(native.address(call.kernel.name), call.first, call.barrier) for call in lowered.calls]
        )
        self.rows[:, 1] = self.arguments.ctypes.data + 8 * self.rows[:, 1]
        self.body, self.logits = lowered.body, lowered.logits
        self.shown: _Shown | None = None
        self._places: dict[str, list[tuple[Dynamic, NDArray[np.int64]]]] = {}
        for dynamic, places in lowered.dynamic.items():
            self._places.setdefault(dynamic.name, []).append((dynamic, np.array(places)))

    def set(self, values: Mapping[str, int]) -> None:
        """Set the slots of changing values by name; names that no call reads are let go."""
        for name, value in values.items():
            for dynamic, places in self._places.get(name, ()):
                self.arguments[places] = dynamic.of(value)


class CpuProgram:
    """A program on the CPU. See `edge.backend.Program`."""

    def __init__(self, bundle: Bundle, target: Target, native: Native, threads: int) -> None:
        self.target = target
        most = MATRIX_ROWS if native.matrix_unit else VECTOR_ROWS
        self.chunks = (1, PRIVATE_ROWS, FEW_ROWS, 64, most)
        self.team = Team(threads)
        self._bundle = bundle
        self._native = native
        self.memory = Memory()
        self._tables: dict[tuple[int, str], Table] = {}
        self._angles: dict[str, NDArray[np.float32]] = {}
        self._positions = 0  # that the angles are for
        self._meeting = np.zeros(MEETING_BYTES // 8, np.int64)

    def run(
        self, tokens: NDArray[np.int32], count: int, cache: KVCache, logit_rows: int
    ) -> NDArray[np.float32]:
        """Run the valid tokens; padding is not computed. See `edge.backend.Program.run`.

        Raises UsageError where another caller's step is running.
        """
        with self.team.alone():
            table = self._prepare(tokens, count, cache, logit_rows)
            self._step(table, table.logits if logit_rows else table.body)
            cache.advance(count)
            return self._logits(table.scores, logit_rows)

    def best(self, tokens: NDArray[np.int32], count: int, cache: KVCache) -> tuple[int, float]:
        """The best next token and its score. See `edge.backend.PicksBest`; raises as `run`."""
        with self.team.alone():
            table = self._prepare(tokens, count, cache, 1)
            self._step(table, len(table.rows))
            cache.advance(count)
            size = argmax.LINE * self.team.count
            left = (ctypes.c_uint8 * size).from_address(table.best)
            return argmax.best_of_threads(np.ctypeslib.as_array(left).reshape(-1, argmax.LINE))

    def _prepare(
        self, tokens: NDArray[np.int32], count: int, cache: KVCache, logit_rows: int
    ) -> Table:
        """The table for so many rows, all its slots set."""
        cache.reserve(count)
        sizes = PRIVATE_ROWS, FEW_ROWS, self.chunks[-1]
        table = self._table(next(size for size in sizes if count <= size), cache.form)
        self._write(table.tokens, tokens[:count])
        self._show(cache, table)
        table.set(
            {
                "rows": count,
                "position": cache.length,
                "logit_rows": logit_rows,
                "skipped_rows": count - logit_rows,
            }
        )
        return table

    def _step(self, table: Table, calls: int) -> None:
        rows, meeting = table.rows.ctypes.data, self._meeting.ctypes.data

        def work(index: int, count: int) -> None:
            self._native.step(rows, calls, meeting, index, count)

        self.team.run(work)

    def _table(self, max_rows: int, cache_format: CacheFormat) -> Table:
        key = max_rows, cache_format
        if key not in self._tables:
            lowering = Lowering(
                self._bundle,
                self.memory,
                self.team.count,
                max_rows,
                cache_format,
                matrix_unit=self._native.matrix_unit and max_rows == MATRIX_ROWS,
                lookup_bits=self._native.lookup_bits,
            )
            self._tables[key] = Table(lowering, self._native)
        return self._tables[key]

    def _show(self, cache: KVCache, table: Table) -> None:
        """Set a cache's addresses where the table has others (at every step it took 0.8 ms)."""
        shown = table.shown
        if shown is None or shown.cache() is not cache or shown.arrays != self._arrays(cache):
            table.set(self._cache_values(cache))
            table.shown = _Shown(weakref.ref(cache), self._arrays(cache))

    def _arrays(self, cache: KVCache) -> tuple[int, int]:
        """What tells whether arrays were replaced: a cache's as it grows, angles for any cache."""
        return cache.capacity, self._positions

    def _cache_values(self, cache: KVCache) -> dict[str, int]:
        values = {"capacity": cache.capacity}
        for index, (keys, stored) in enumerate(zip(cache.keys, cache.values, strict=True)):
            values[f"keys/{index}"] = keys.ctypes.data
            values[f"values/{index}"] = stored.ctypes.data
        return values | self._angle_values(cache.capacity)

    def _angle_values(self, positions: int) -> dict[str, int]:
        """Tables of cosines and sines for at least this many positions, grown as needed."""
        if positions > self._positions:
            self._positions = positions
            for op in self._bundle.graph.ops():
                if isinstance(op, Rope):
                    key, turns = f"{op.frequencies}/{op.scale}", self._turns(op, positions)
                    self._angles[f"cos/{key}"] = np.cos(turns) * np.float32(op.scale)
                    self._angles[f"sin/{key}"] = np.sin(turns) * np.float32(op.scale)
        return {name: angles.ctypes.data for name, angles in self._angles.items()}

    def _turns(self, op: Rope, positions: int) -> NDArray[np.float32]:
        frequencies = self._bundle.tensor(op.frequencies).parts["values"]
        angles: NDArray[np.float32] = np.arange(positions, dtype=np.float32)[:, None] * frequencies
        return angles

    def _write(self, address: int, values: NDArray[np.int32]) -> None:
        ctypes.memmove(address, np.ascontiguousarray(values).ctypes.data, values.nbytes)

    def _logits(self, place: Place, count: int) -> NDArray[np.float32]:
        assert isinstance(place.address, int)
        size = count * place.stride // 4
        values = np.ctypeslib.as_array((ctypes.c_float * size).from_address(place.address))
        rows: NDArray[np.float32] = values.reshape(count, place.stride // 4)
        return rows[:, : place.width].copy()
