"""The KV cache: keys and values of every layer, for one sequence.

Formats: `f32`; `f16`; `int8`, where a key or value of one token and head is whole numbers of -127
to 127 and, behind them in the same row, a bfloat16 scale for each half of them: the half's largest
magnitude over 127, rounded. So an int8 value is off by half a scale at most. One float32 scale for
all takes the same bytes and has three times the KL divergence, measured on a trained model. The
reference keeps float32 unless told otherwise, since it is what others are held to; processors keep
float16, half the bytes for a decode step to read.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edge import pages
from edge.errors import PromptTooLong, UsageError
from edge.graph import Cache
from edge.target import Target

CacheFormat = Literal["f32", "f16", "int8"]
_DTYPES = {"f32": np.float32, "f16": np.float16, "int8": np.int8}
_FIRST_CAPACITY = 1024

Stored = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.int8]

# Bytes of the scales behind a row of int8.
SCALE_BYTES = 4

# Halves that stay below it are zeros: the inverse of their scale would be infinite.
LEAST = 1e-30


def default_format(target: Target) -> CacheFormat:
    """The format that suits a target."""
    return "f32" if target.kind == "ref" else "f16"


def row_length(head_dim: int, form: CacheFormat) -> int:
    """Elements of a stored row: those of a head, and its scales' bytes where it has them."""
    return head_dim + (SCALE_BYTES if form == "int8" else 0)


def encode(x: NDArray[np.float32], form: CacheFormat) -> Stored:
    """Rows float32 [..., head_dim] as they are stored, [..., row_length]."""
    if form != "int8":
        return x.astype(_DTYPES[form])
    halves = [_int8(half) for half in np.split(x, [x.shape[-1] // 2], axis=-1)]
    codes, scales = zip(*halves, strict=True)
    return np.concatenate([*codes, *(scale.view(np.int8)[..., 2:] for scale in scales)], axis=-1)


def _int8(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Whole numbers, and their scale [..., 1], whose lower 16 bits are zeros."""
    peaks = np.abs(x).max(axis=-1, keepdims=True, initial=0)
    bits = (peaks * np.float32(1 / 127)).view(np.uint32) + np.uint32(0x8000)
    scales = (bits & np.uint32(0xFFFF0000)).view(np.float32)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(peaks > LEAST, np.float32(1) / scales, np.float32(0))
    return np.rint(x * inverse).astype(np.int8), scales


def decode(stored: Stored, form: CacheFormat) -> NDArray[np.float32]:
    """What `encode` stored, as float32 [..., head_dim]."""
    if form != "int8":
        return stored.astype(np.float32, copy=False)
    codes, behind = stored[..., :-SCALE_BYTES], stored[..., -SCALE_BYTES:].view(np.uint16)
    scales = (behind.astype(np.uint32) << 16).view(np.float32)  # [..., 2]
    half = codes.shape[-1] // 2
    repeated = np.repeat(scales, [half, codes.shape[-1] - half], axis=-1)
    values: NDArray[np.float32] = codes.astype(np.float32) * repeated
    return values


class KVCache:
    """Keys and values per layer, [kv_heads, capacity, row_length], filled up to `length`.

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
        self.rewinds = 0  # how often positions were forgotten: others may be there since
        self.capacity = min(_FIRST_CAPACITY, context)
        self.keys = [self._empty(layer, self.capacity) for layer in self.layers]
        self.values = [self._empty(layer, self.capacity) for layer in self.layers]

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one position takes over all layers."""
        rows = [layer.kv_heads * row_length(layer.head_dim, self.form) for layer in self.layers]
        return 2 * sum(rows) * np.dtype(_DTYPES[self.form]).itemsize

    @property
    def byte_count(self) -> int:
        """Bytes of all that is filled; what is reserved beyond takes no memory yet."""
        return self.length * self.bytes_per_token

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
        self.keys[layer][:, self.length : end] = encode(keys, self.form)
        self.values[layer][:, self.length : end] = encode(values, self.form)

    def filled(self, layer: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keys and values [kv_heads, length + count, head_dim] of a layer."""
        end = self.length + count
        keys, values = self.keys[layer][:, :end], self.values[layer][:, :end]
        return decode(keys, self.form), decode(values, self.form)

    def at(self, position: int) -> KVCache:
        """The same arrays as if filled up to `position`: how chunks of a prompt share a cache.

        Room must be reserved before; the arrays of a cache that grows are others.
        """
        view = copy.copy(self)
        view.length = position
        return view

    def advance(self, count: int) -> None:
        """Count what a step appended in every layer."""
        self.length += count

    def rewind(self, length: int) -> None:
        """Forget all positions from `length` on."""
        if not 0 <= length <= self.length:
            raise UsageError(f"rewind to {length} of a cache that holds {self.length}")
        self.rewinds += 1
        self.length = length

    def _empty(self, layer: Cache, capacity: int) -> Stored:
        shape = layer.kv_heads, capacity, row_length(layer.head_dim, self.form)
        return pages.zeros(shape, _DTYPES[self.form])

    def _grown(self, arrays: Sequence[Stored], capacity: int) -> list[Stored]:
        """Copies of every layer's array with room for `capacity` positions."""
        grown = [self._empty(layer, capacity) for layer in self.layers]
        for new, old in zip(grown, arrays, strict=True):
            new[:, : self.length] = old[:, : self.length]
        return grown
