"""A KV cache in the codes that layers on an NPU are given."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edge.kvcache import KVCache
from edge.npu import Activation, Codes
from npu.htp.layer import Layer

Stored = NDArray[np.int16]


class CodedCache:
    """Keys and values of every layer as codes, [kv_heads, positions, head_dim] each.

    A copy of the cache that the model's programs share: `follow` takes over what others have put
    there, `append` writes to both.
    """

    def __init__(self, layers: Sequence[Layer], activations: Mapping[str, Activation]) -> None:
        self._layers = tuple(layers)
        self._kept = [tuple(activations[name] for name in layer.kept) for layer in layers]
        self._codes = [tuple(_empty(layer) for _ in layer.kept) for layer in layers]
        self._followed: tuple[weakref.ref[KVCache], int, int] | None = None

    def follow(self, cache: KVCache) -> None:
        """Be what `cache` holds. Costs nothing where all of it came through `append`."""
        if self._followed is not None:
            known, *state = self._followed
            if known() is cache and state == [cache.rewinds, cache.length]:
                return
        for layer, kept, codes in zip(self._layers, self._kept, self._codes, strict=True):
            held = cache.filled(layer.attention.cache, 0)
            for activation, stored, values in zip(kept, codes, held, strict=True):
                stored[:, : cache.length] = activation.encode(values)
        self.advanced(cache)

    def codes(self, place: int) -> tuple[Stored, ...]:
        """Keys and values of a layer, by its place."""
        return self._codes[place]

    def append(self, place: int, made: Sequence[Codes], count: int, cache: KVCache) -> None:
        """Put the first `count` rows of keys and values [rows, width] behind what is held."""
        layer, values = self._layers[place], []
        new = slice(cache.length, cache.length + count)
        for activation, stored, codes in zip(
            self._kept[place], self._codes[place], made, strict=True
        ):
            heads = codes[:count].reshape(count, -1, layer.cache.head_dim).transpose(1, 0, 2)
            stored[:, new] = heads
            values.append(activation.decode(heads))
        cache.append(layer.attention.cache, *values)

    def advanced(self, cache: KVCache) -> None:
        """`cache` is as this is now."""
        self._followed = weakref.ref(cache), cache.rewinds, cache.length


def _empty(layer: Layer) -> Stored:
    shape = layer.cache.kv_heads, layer.positions, layer.cache.head_dim
    return np.zeros(shape, np.int16)
