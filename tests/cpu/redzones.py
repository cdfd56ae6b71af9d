"""Buffers with red zones: what native code reads or writes beside a buffer does not go unseen.

The zones hold patterns that are NaN as float32 and as float16, so that reading them spoils results,
one after another, so that a zone that was copied into another is seen; `Guarded.damage` says
whether they were written to. `walled` puts what is read at the end of a page
behind which nothing may be touched: reading on ends the process.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

ZONE_BYTES = 256
LINE_BYTES = 64
_PATTERNS = itertools.cycle(range(1, 256))


class Guarded:
    """A copy of an array, on a line of its own, between two red zones."""

    def __init__(self, name: str, content: NDArray[Any]) -> None:
        self.name = name
        flat = np.ascontiguousarray(content).reshape(-1).view(np.uint8)
        self._memory = np.empty(flat.size + 2 * ZONE_BYTES + LINE_BYTES, np.uint8)
        first = -(self._memory.ctypes.data + ZONE_BYTES) % LINE_BYTES
        self._before = self._memory[first : first + ZONE_BYTES]
        start = first + ZONE_BYTES
        self._data = self._memory[start : start + flat.size]
        self._after = self._memory[start + flat.size : start + flat.size + ZONE_BYTES]
        self._data[:] = flat
        self._pattern = np.resize(
            np.array([next(_PATTERNS), 0xFC, 0xFD, 0xFF], np.uint8), ZONE_BYTES
        )
        self._before[:] = self._pattern
        self._after[:] = self._pattern
        self._like = content

    @property
    def address(self) -> int:
        return self._data.ctypes.data

    def content(self) -> NDArray[Any]:
        """What the buffer holds now."""
        return self._data.view(self._like.dtype).reshape(self._like.shape)

    def damage(self) -> str:
        """Where the zones were written to; empty where nowhere."""
        for side, zone in (("before", self._before), ("behind", self._after)):
            places = np.flatnonzero(zone != self._pattern)
            if places.size:
                return f"{self.name}: {places.size} bytes {side} it written, first at {places[0]}"
        return ""


class Walled:
    """A copy of an array that ends where a page without access begins."""

    def __init__(self, name: str, content: NDArray[Any]) -> None:
        self.name = name
        self._like = content
        flat = np.ascontiguousarray(content).reshape(-1).view(np.uint8)
        page = mmap.PAGESIZE
        size = -(-flat.size // page) * page
        self._map = mmap.mmap(-1, size + page)
        self._pages = np.frombuffer(self._map, np.uint8)
        self._data = self._pages[size - flat.size : size]
        self._data[:] = flat
        wall = ctypes.c_void_p(self._pages.ctypes.data + size)
        if ctypes.CDLL(None, use_errno=True).mprotect(wall, ctypes.c_size_t(page), 0):
            raise OSError(ctypes.get_errno(), "mprotect")

    @property
    def address(self) -> int:
        return self._data.ctypes.data

    def content(self) -> NDArray[Any]:
        return self._data.view(self._like.dtype).reshape(self._like.shape)

    def damage(self) -> str:
        return ""
