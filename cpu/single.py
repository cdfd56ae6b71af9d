"""Kernels called one at a time, for programs that have the rest of a model elsewhere."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import numpy as np

from cpu.native import Native
from cpu.threads import Team
from edge.target import Target

_KIND = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


class SingleCalls:
    """See `edge.backend.Kernels`. With one thread, the caller's, several may call at once."""

    def __init__(self, target: Target, native: Native, threads: int) -> None:
        self.target = target
        self.threads = threads
        self._native = native
        self._team = Team(threads) if threads > 1 else None
        self._functions: dict[str, Callable[[int, int, int], None]] = {}

    def run(self, name: str, arguments: Sequence[int]) -> None:
        """Run a kernel. Raises UsageError where another caller's runs on the same threads."""
        slots = np.array(arguments, np.int64)
        function, address = self._function(name), slots.ctypes.data
        if self._team is None:
            function(address, 0, 1)
            return
        with self._team.alone():
            self._team.run(lambda index, count: function(address, index, count))

    def _function(self, name: str) -> Callable[[int, int, int], None]:
        if name not in self._functions:
            self._functions[name] = _KIND(self._native.address(name))
        return self._functions[name]
