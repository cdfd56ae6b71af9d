"""Checkpoints in the Hugging Face layout whose linear weights are packed integers.

A packing says where a layer's integers, scales and zeros are; this turns them into a tensor called
`weight`, whose integers the bundle keeps. Nothing is rounded again: what a format of a bundle
cannot hold is refused by name, unless the user asks for another format.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from converter.sources.huggingface import Checkpoint
from converter.sources.source import Stored
from edge.errors import BadWeights, TruncatedSource, WrongShape
from edge.formats import GROUPS, WHOLE_ZERO_BITS, Format
from edge.planes import Codes, Quantized

WORD_BITS = 32


@dataclass(frozen=True)
class Linear:
    """One packed layer: shape [out, in], and what shares a scale along a row.

    `group` is a number of weights, the width for a whole row, 0 for the whole tensor.
    `group_of` is the group of each weight of a row, where they are out of order (act-order).
    """

    shape: tuple[int, int]
    bits: int
    group: int
    asymmetric: bool = False
    ternary: bool = False
    group_of: NDArray[np.int64] | None = field(default=None, compare=False)

    @property
    def group_count(self) -> int:
        return -(-self.shape[1] // self.group) if self.group else 1

    @property
    def order(self) -> NDArray[np.intp] | None:
        """The columns by group, for groups out of order."""
        return None if self.group_of is None else np.argsort(self.group_of, kind="stable")

    @property
    def whole_groups(self) -> bool:
        """Whether every group has its number of weights, wherever in a row they are."""
        places = np.arange(self.shape[1]) // (self.group or self.shape[1])
        return self.group_of is None or np.array_equal(np.sort(self.group_of), places)

    def form(self) -> Format | None:
        """The format that holds its integers, in `order`; None where there is none."""
        kind: Literal["ternary", "integer"] = "ternary" if self.ternary else "integer"
        if not self.whole_groups or not (self.ternary or self.bits in WHOLE_ZERO_BITS):
            return None
        if self.group == 0:
            return Format("ternary", 2, "tensor") if self.ternary else None
        fitting = [group for group in GROUPS if self.group % group == 0]
        if self.group == self.shape[1] and self.group not in GROUPS:
            return Format(kind, self.bits, "channel", 0, self.asymmetric)
        return Format(kind, self.bits, "group", fitting[-1], self.asymmetric) if fitting else None

    def why_not(self) -> str:
        """Why no format holds its integers; empty where one does."""
        if self.form() is not None:
            return ""
        if not self.whole_groups:
            return f"its g_idx gives groups other counts of weights than {self.group}"
        if self.bits not in WHOLE_ZERO_BITS:
            return f"it has {self.bits} bits, need one of {WHOLE_ZERO_BITS}"
        return f"a scale for {self.group} weights, need a multiple of one of {GROUPS}, or a row"


@dataclass(frozen=True)
class Integers:
    """Rows of a layer: a weight is (code - zero) * scale.

    codes [rows, width] uint8; scales [rows, groups] float32; zeros [rows, groups] uint8.
    """

    codes: Codes
    scales: NDArray[np.float32]
    zeros: Codes

    def floats(self, linear: Linear) -> NDArray[np.float32]:
        """The weights, [rows, width] float32."""
        width = linear.shape[1]
        groups = linear.group_of
        if groups is None:
            groups = np.arange(width) // (linear.group or width)
        steps = self.codes.astype(np.float32) - self.zeros.astype(np.float32)[:, groups]
        return steps * self.scales[:, groups]


class Packing(Protocol):
    """A way to pack linear layers; `kind` is its name for people."""

    @property
    def kind(self) -> str: ...

    def stems(self, checkpoint: Checkpoint) -> Iterable[str]:
        """Names of the packed layers, without their last part."""
        ...

    def parts(self) -> tuple[str, ...]:
        """Last parts of the names of a packed layer's tensors."""
        ...

    def describe(self, checkpoint: Checkpoint, stem: str) -> Linear:
        """A layer from its tensors' headers. Raises WrongShape, MissingTensor, UnsupportedMath."""
        ...

    def read(
        self, checkpoint: Checkpoint, stem: str, linear: Linear, first: int, last: int
    ) -> Integers:
        """Rows first..last of a layer."""
        ...


class PackedCheckpoint:
    """A checkpoint whose packed layers look like tensors of their own.

    `config` is the checkpoint's without what describes the packing.
    """

    def __init__(self, inner: Checkpoint, packing: Packing, config: dict[str, Any]) -> None:
        self.config = config
        self._inner = inner
        self._packing = packing
        self._linears = {
            f"{stem}.weight": (stem, packing.describe(inner, stem))
            for stem in sorted(packing.stems(inner))
        }
        parts = {f"{stem}.{p}" for stem, _ in self._linears.values() for p in packing.parts()}
        self._plain = inner.tensor_names - parts

    @property
    def folder(self) -> Path:
        return self._inner.folder

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def tensor_names(self) -> frozenset[str]:
        return frozenset(self._linears) | self._plain

    @property
    def fingerprint(self) -> dict[str, list[int]]:
        return self._inner.fingerprint

    @property
    def quantized(self) -> bool:
        return bool(self._linears)

    def shape(self, name: str) -> tuple[int, ...]:
        found = self._linears.get(name)
        return self._inner.shape(name) if found is None else found[1].shape

    def dtype(self, name: str) -> str:
        found = self._linears.get(name)
        if found is None:
            return self._inner.dtype(name)
        return f"{self._packing.kind} {found[1].bits}-bit"

    def stored(self, name: str) -> Stored | None:
        found = self._linears.get(name)
        if found is None:
            return self._inner.stored(name)
        linear, form = found[1], found[1].form()
        return Stored(self.dtype(name), form, form is not None, linear.why_not(), linear.order)

    def rows(self, name: str, first: int, last: int) -> NDArray[np.float32]:
        found = self._linears.get(name)
        if found is None:
            return self._inner.rows(name, first, last)
        stem, linear = found
        return self._packing.read(self._inner, stem, linear, first, last).floats(linear)

    def codes(self, name: str, first: int, last: int) -> Quantized:
        stem, linear = self._linears[name]
        read = self._packing.read(self._inner, stem, linear, first, last)
        return _quantized(f"{self.shard_of(name)}: tensor {name}", linear, read)

    def shard_of(self, name: str) -> str:
        found = self._linears.get(name)
        if found is None:
            return self._inner.shard_of(name)
        return self._inner.shard_of(f"{found[0]}.{self._packing.parts()[0]}")

    def read_json(self, name: str) -> dict[str, Any]:
        return self._inner.read_json(name)

    def read_bytes(self, name: str) -> bytes | None:
        return self._inner.read_bytes(name)


def _quantized(where: str, linear: Linear, read: Integers) -> Quantized:
    """Integers in the layer's own format. Raises BadWeights where they are not what it says."""
    form = linear.form()
    assert form is not None
    cure = "name another format: --weights w8g32 quantizes it anew, nearly exactly"
    if not linear.asymmetric and (read.zeros != form.zero).any():
        raise BadWeights(
            f"{where} has zeros other than {form.zero}, and its config calls it symmetric",
            "correct config.json (sym in quantization_config)",
        )
    if read.codes.max(initial=0) >= form.levels:
        raise BadWeights(f"{where} has a code of {int(read.codes.max())}", "get another copy")
    codes, scales = read.codes, read.scales
    if linear.order is not None:
        codes = codes[:, linear.order]
    if form.granularity == "tensor":
        return Quantized(codes, scales[:1, :1])
    zeros = read.zeros if linear.asymmetric else None
    if form.granularity == "channel":
        return Quantized(codes, scales, zeros)
    with np.errstate(over="ignore"):
        narrow = scales.astype(np.float16)
    if not np.array_equal(narrow.astype(np.float32), scales, equal_nan=True):
        raise BadWeights(f"{where} has scales that float16 does not hold", cure)
    repeats, count = linear.group // form.group, form.group_count(linear.shape[1])
    if zeros is not None:
        zeros = np.repeat(zeros, repeats, axis=1)[:, :count]
    return Quantized(codes, np.repeat(narrow, repeats, axis=1)[:, :count], zeros)


def unpack_words(words: NDArray[np.int32], bits: int) -> Codes:
    """Numbers of `bits` bits out of 32-bit words along the last axis, lowest bits first.

    [..., words] -> [..., words * 32 / bits] uint8. Where 32 is no multiple of `bits`, numbers go on
    in the next word.
    """
    content = np.ascontiguousarray(words.astype("<i4", copy=False)).view(np.uint8)
    if bits == 8:
        return content
    flat = np.unpackbits(content, axis=-1, bitorder="little")
    flat = flat.reshape(*words.shape[:-1], -1, bits)
    codes = np.zeros(flat.shape[:-1], np.uint8)
    for bit in range(bits):
        codes |= flat[..., bit] << bit
    return codes


def expect_shape(checkpoint: Checkpoint, name: str, shape: tuple[int, ...], dtype: str) -> None:
    """Check a part's header. Raises WrongShape, TruncatedSource or MissingTensor."""
    if checkpoint.shape(name) != shape:
        raise WrongShape(
            f"{checkpoint.shard_of(name)}: tensor {name} is {list(checkpoint.shape(name))}, "
            f"need {list(shape)}",
            "check that config.json and the weights belong together",
        )
    if dtype and checkpoint.dtype(name) != dtype:
        raise TruncatedSource(
            f"{checkpoint.shard_of(name)}: tensor {name} is {checkpoint.dtype(name)}, need {dtype}",
            "get another copy of the checkpoint",
        )


def expect_matrix(checkpoint: Checkpoint, name: str, dtype: str) -> tuple[int, int]:
    """The shape of a part that is a matrix of `dtype`. Raises WrongShape or TruncatedSource."""
    shape = checkpoint.shape(name)
    if len(shape) != 2 or 0 in shape:
        raise WrongShape(
            f"{checkpoint.shard_of(name)}: tensor {name} is {list(shape)}, need a matrix",
            "get another copy of the checkpoint",
        )
    expect_shape(checkpoint, name, shape, dtype)
    return shape[0], shape[1]


def with_order(linear: Linear, checkpoint: Checkpoint, index: str, dtype: str = "") -> Linear:
    """The layer with the group of each weight, where `index` is a part and has them out of order.

    Raises BadWeights, WrongShape or TruncatedSource.
    """
    if index not in checkpoint.tensor_names:
        return linear
    expect_shape(checkpoint, index, (linear.shape[1],), dtype)
    order = checkpoint.raw(index).astype(np.int64)
    if (order == np.arange(linear.shape[1]) // linear.group).all():
        return linear
    if order.min() < 0 or order.max() >= linear.group_count:
        where = f"{checkpoint.shard_of(index)}: tensor {index}"
        raise BadWeights(f"{where} names group {int(order.max())}", "get another copy")
    return replace(linear, group_of=order)
