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


class KVCache:
    """Keys and values per layer, [kv_heads, context, head_dim], filled up to `length`.

    A step appends in every layer and then calls `advance`. Memory is taken as positions are
    written, not when the cache is made.
    """

    def __init__(self, layers: Sequence[Cache], context: int, form: CacheFormat = "f32") -> None:
        if form not in get_args(CacheFormat):
            raise UsageError(f"KV cache format {form!r}", f"use one of {get_args(CacheFormat)}")
        self.context = context
        self.form = form
        self.length = 0
        shapes = [(layer.kv_heads, context, layer.head_dim) for layer in layers]
        self.keys = [np.zeros(shape, _DTYPES[form]) for shape in shapes]
        self.values = [np.zeros(shape, _DTYPES[form]) for shape in shapes]

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one position takes over all layers."""
        arrays = [*self.keys, *self.values]
        return sum(array.nbytes for array in arrays) // self.context

    def require(self, count: int) -> None:
        """Check that `count` more positions fit. Raises PromptTooLong."""
        if self.length + count > self.context:
            raise PromptTooLong(
                f"{self.length + count} tokens, the context holds {self.context}",
                "shorten the prompt, or convert with a larger --context",
            )

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
