"""The KV cache: keys and values of every layer, for one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edge.errors import PromptTooLong, UsageError
from edge.graph import Cache

CacheFormat = Literal["f32", "f16"]
_DTYPES = {"f32": np.float32, "f16": np.float16}
_FIRST_CAPACITY = 256


class KVCache:
    """Keys and values per layer, [kv_heads, capacity, head_dim], filled up to `length`.

    A step reserves room, appends in every layer, and then advances. Capacity doubles as needed up
    to `context`, so a long context costs nothing before it is used.
    """

    def __init__(self, layers: Sequence[Cache], context: int, form: CacheFormat = "f32") -> None:
        if form not in get_args(CacheFormat):
            raise UsageError(f"KV cache format {form!r}", f"use one of {get_args(CacheFormat)}")
        self.layers = tuple(layers)
        self.context = context
        self.form = form
        self.length = 0
        self.capacity = min(_FIRST_CAPACITY, context)
        self.keys = [self._empty(layer, self.capacity) for layer in self.layers]
        self.values = [self._empty(layer, self.capacity) for layer in self.layers]

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one position takes over all layers."""
        elements = sum(2 * layer.kv_heads * layer.head_dim for layer in self.layers)
        return elements * np.dtype(_DTYPES[self.form]).itemsize

    def require(self, count: int) -> None:
        """Check that `count` more positions fit the context. Raises PromptTooLong."""
        if self.length + count > self.context:
            raise PromptTooLong(
                f"{self.length + count} tokens, the context holds {self.context}",
                "shorten the prompt, or use a larger --context, here or in the conversion",
            )

    def reserve(self, count: int) -> None:
        """Make room for `count` more positions. Raises PromptTooLong."""
        self.require(count)
        if self.length + count > self.capacity:
            capacity = min(max(2 * self.capacity, self.length + count), self.context)
            keys, values = self._grown(self.keys, capacity), self._grown(self.values, capacity)
            # All at the end: Ctrl-C or a lack of memory before leaves the cache as it was.
            self.capacity, self.keys, self.values = capacity, keys, values

    def append(self, layer: int, keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Write keys and values [kv_heads, tokens, head_dim] behind the filled part."""
        end = self.length + keys.shape[1]
        self.keys[layer][:, self.length : end] = keys
        self.values[layer][:, self.length : end] = values

    def filled(self, layer: int, count: int) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Keys and values [kv_heads, length + count, head_dim] of a layer."""
        end = self.length + count
        return self.keys[layer][:, :end], self.values[layer][:, :end]

    def advance(self, count: int) -> None:
        """Count what a step appended in every layer."""
        self.length += count

    def rewind(self, length: int) -> None:
        """Forget all positions from `length` on."""
        if not 0 <= length <= self.length:
            raise UsageError(f"rewind to {length} of a cache that holds {self.length}")
        self.length = length

    def _empty(self, layer: Cache, capacity: int) -> NDArray[np.floating]:
        return np.zeros((layer.kv_heads, capacity, layer.head_dim), _DTYPES[self.form])

    def _grown(
        self, arrays: Sequence[NDArray[np.floating]], capacity: int
    ) -> list[NDArray[np.floating]]:
        """Copies of every layer's array with room for `capacity` positions."""
        grown = [self._empty(layer, capacity) for layer in self.layers]
        for new, old in zip(grown, arrays, strict=True):
            new[:, : self.length] = old[:, : self.length]
        return grown
