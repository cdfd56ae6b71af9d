"""The header of a GGUF file: metadata and where the tensors are, read with bounds.

The format: magic, version, counts; keys with typed values; for each tensor a name, dimensions
(fastest first), a type and an offset; then the data, each tensor on a boundary of
`general.alignment` bytes. Every count and length in it is checked against the file's size and the
limits below before anything is allocated for it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from converter.sources.gguf_types import TYPES, BlockType
from edge.errors import TruncatedSource, UnsupportedMath

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT_KEY = "general.alignment"

# The largest vocabularies have 262,144 tokens and some 500,000 merges, their headers 20 MB.
MAX_HEADER_BYTES = 1 << 27
MAX_STRINGS = 1 << 20
MAX_COUNT = 1 << 16
MAX_NAME_BYTES = 1 << 10
MAX_DIMENSION = 1 << 31
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 16

# Kinds of values that are numbers, as NumPy types.
_NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9

Value = bool | int | float | str | list[str] | NDArray[Any]


@dataclass(frozen=True)
class Entry:
    """One tensor: its file, shape as [out, in], type, and first byte in the file."""

    path: Path
    shape: tuple[int, ...]
    type: BlockType
    start: int

    @property
    def byte_count(self) -> int:
        return math.prod(self.shape) // self.type.block * self.type.byte_count

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; of all elements, for a vector."""
        return self.shape[-1] // self.type.block * self.type.byte_count


@dataclass(frozen=True)
class Header:
    """Metadata by key, tensors by name."""

    metadata: Mapping[str, Value]
    tensors: Mapping[str, Entry]


def read_header(path: Path) -> Header:
    """Read and check a header.

    Raises TruncatedSource for a file that is no whole GGUF, UnsupportedMath for a version or a
    type that this version does not read.
    """
    with path.open("rb") as file:
        return _Reader(path, file).header()


class _Reader:
    """Reads a header front to back; `position` never passes the file's end or the limit."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.size = path.stat().st_size
        self.position = 0

    def header(self) -> Header:
        tensor_count, key_count = self.counts()
        metadata: dict[str, Value] = {}
        for _ in range(key_count):
            key = self.string(MAX_NAME_BYTES)
            if key in metadata:
                raise self.wrong(f"key {key!r} is there twice")
            metadata[key] = self.value(self.number("<u4"), key)
        tensors: dict[str, tuple[tuple[int, ...], BlockType, int]] = {}
        for _ in range(tensor_count):
            name = self.string(MAX_NAME_BYTES)
            if name in tensors:
                raise self.wrong(f"tensor {name!r} is there twice")
            tensors[name] = self.tensor(name)
        return Header(metadata, self.placed(tensors, self.alignment(metadata)))

    def counts(self) -> tuple[int, int]:
        """Counts of tensors and keys, each of which takes some bytes of the file."""
        if self.take(4, "its magic") != MAGIC:
            raise self.wrong("does not begin with GGUF")
        version = self.number("<u4")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            raise UnsupportedMath(
                f"{self.path}: GGUF version {version}, need {' or '.join(map(str, VERSIONS))}"
                + (" (the file is big-endian)" if swapped else ""),
                "convert the model again with a current llama.cpp, on a little-endian machine",
            )
        tensors, keys = self.number("<u8"), self.number("<u8")
        for count, what, least_bytes in ((tensors, "tensors", 24), (keys, "keys", 13)):
            if count > min(MAX_COUNT, (self.size - self.position) // least_bytes):
                raise self.wrong(f"{self.size} bytes long and said to have {count} {what}")
        return tensors, keys

    def value(self, kind: int, key: str) -> Value:
        if kind == _STRING:
            return self.string(MAX_HEADER_BYTES)
        if kind == _ARRAY:
            return self.array(key)
        if kind not in _NUMBERS:
            raise self.wrong(f"key {key!r} is of type {kind}, which there is not")
        return self.number(_NUMBERS[kind])

    def array(self, key: str) -> Value:
        kind, count = self.number("<u4"), self.number("<u8")
        if kind == _STRING:
            if count > min(MAX_STRINGS, (self.size - self.position) // 8):
                raise self.wrong(f"key {key!r} is said to hold {count} texts")
            return [self.string(MAX_HEADER_BYTES) for _ in range(count)]
        if kind not in _NUMBERS:
            raise self.wrong(f"key {key!r} is an array of type {kind}, need numbers or texts")
        dtype = np.dtype(_NUMBERS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize, f"key {key!r}"), dtype)

    def tensor(self, name: str) -> tuple[tuple[int, ...], BlockType, int]:
        """Shape, type and offset in the data of one tensor."""
        count = self.number("<u4")
        if not 1 <= count <= MAX_DIMENSIONS:
            raise self.wrong(f"tensor {name!r} has {count} dimensions, need 1 to {MAX_DIMENSIONS}")
        sizes = [self.number("<u8") for _ in range(count)]
        if not all(1 <= size <= MAX_DIMENSION for size in sizes):
            raise self.wrong(f"tensor {name!r} is {sizes}")
        while len(sizes) > 1 and sizes[-1] == 1:  # a vector may come with dimensions of 1
            sizes.pop()
        number, offset = self.number("<u4"), self.number("<u8")
        kind = TYPES.get(number)
        if kind is None:
            raise self.wrong(f"tensor {name!r} is of type {number}, which there is not")
        if not kind.readable:
            known = ", ".join(t.name for t in TYPES.values() if t.readable)
            raise UnsupportedMath(
                f"{self.path}: tensor {name} is {kind.name}, which is not read",
                f"give a file in one of {known}",
            )
        if sizes[0] % kind.block:
            raise self.wrong(f"tensor {name!r} has rows of {sizes[0]}, no whole {kind.name} blocks")
        return tuple(reversed(sizes)), kind, offset

    def alignment(self, metadata: Mapping[str, Value]) -> int:
        value = metadata.get(ALIGNMENT_KEY, 32)
        if type(value) is not int or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
            raise self.wrong(f"{ALIGNMENT_KEY} is {value!r}, need a power of two")
        return value

    def placed(
        self, tensors: Mapping[str, tuple[tuple[int, ...], BlockType, int]], alignment: int
    ) -> dict[str, Entry]:
        """Tensors at their places in the file: aligned, inside of it, none over another."""
        start = -(-self.position // alignment) * alignment
        entries = {}
        end, before = 0, ""
        for name, (shape, kind, offset) in sorted(tensors.items(), key=lambda item: item[1][2]):
            entry = entries[name] = Entry(self.path, shape, kind, start + offset)
            if offset % alignment:
                raise self.wrong(f"tensor {name!r} is at {offset}, no multiple of {alignment}")
            if offset < end:
                raise self.wrong(f"tensors {before!r} and {name!r} overlap")
            if start + offset + entry.byte_count > self.size:
                raise self.wrong(
                    f"{self.size} bytes long, and tensor {name!r} ends at "
                    f"{start + offset + entry.byte_count}"
                )
            end, before = offset + entry.byte_count, name
        return entries

    def string(self, limit: int) -> str:
        length = self.number("<u8")
        if length > limit:
            raise self.wrong(f"a text of {length} bytes in the header")
        return self.take(length, "a text").decode("utf-8", "replace")

    def number(self, dtype: str) -> Any:
        """One number, as a Python one."""
        code = _STRUCTS[dtype]
        return code.unpack(self.take(code.size, "a number"))[0]

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes, if the file and the limit of a header have them."""
        if count > min(self.size, MAX_HEADER_BYTES) - self.position:
            raise self.wrong(f"{self.size} bytes long, and {what} in its header takes {count} more")
        content = self.file.read(count)
        if len(content) != count:
            raise self.wrong("ends in its header, and was longer when it was opened")
        self.position += count
        return content

    def wrong(self, found: str) -> TruncatedSource:
        return TruncatedSource(f"{self.path}: {found}", "copy or download the file again")


_STRUCTS = {
    dtype: struct.Struct("<" + code)
    for dtype, code in zip(_NUMBERS.values(), "BbHhIif?Qqd", strict=True)
}
