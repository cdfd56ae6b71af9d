"""safetensors files: read by memory map, written one block at a time.

The format: 8 bytes little-endian header length, a JSON header of names to dtype, shape and offsets,
then the data without holes. Readers elsewhere load a whole file or need torch for bfloat16; the
writer elsewhere wants all tensors in memory at once, which an 8B model on a 16 GB machine has not.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import LutraError, TruncatedSource
from edge.planes import Part

# safetensors' own limit; a longer header is an attack or not a safetensors file.
MAX_HEADER_BYTES = 100_000_000

# A line of a CPU's caches, and a vector of Hexagon's.
LINE_BYTES, ALIGNMENT = 64, 128

# bfloat16 has no NumPy type: it is stored and mapped as uint16.
DTYPES: dict[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "uint16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its safetensors dtype, shape, and first byte in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def part(self) -> Part:
        return Part(DTYPES[self.dtype], self.shape)


class TensorFile:
    """A safetensors file, mapped. Opening reads and checks the header alone.

    `error` is the class raised for anything wrong with the file, so that a bundle's file and a
    checkpoint's shard are told apart.
    """

    def __init__(self, path: Path, error: type[LutraError] = TruncatedSource) -> None:
        self.path = path
        self._error = error
        self.entries, self._metadata = self._read_header()
        self._map: mmap.mmap | None = None

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def array(self, name: str) -> NDArray[Any]:
        """The tensor as a read-only view of the mapped file; bfloat16 as uint16."""
        entry = self.entries[name]
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        count = int(np.prod(entry.shape, dtype=np.int64))
        dtype = np.dtype(DTYPES[entry.dtype])
        return np.frombuffer(self._map, dtype, count, entry.start).reshape(entry.shape)

    def read(self, name: str, first: int, last: int) -> NDArray[Any]:
        """Rows first..last of a tensor, read into memory of their own: nothing stays mapped.

        Raises the file's error where it was cut after it was opened.
        """
        entry = self.entries[name]
        width = int(np.prod(entry.shape[1:], dtype=np.int64))
        dtype = np.dtype(DTYPES[entry.dtype])
        start = entry.start + first * width * dtype.itemsize
        rows = np.fromfile(self.path, dtype, (last - first) * width, offset=start)
        if rows.size != (last - first) * width:
            raise self._wrong(f"ends in tensor {name}, and was longer when it was opened")
        return rows.reshape(last - first, *entry.shape[1:])

    def _read_header(self) -> tuple[dict[str, Entry], dict[str, str]]:
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise self._wrong(f"{size} bytes long with a header of {length}")
            header = file.read(length)
        try:
            fields = json.loads(header)
            metadata = fields.pop("__metadata__", None) or {}
            start = 8 + length
            entries = {name: self._entry(name, value, start) for name, value in fields.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._wrong(f"its header is not safetensors ({error})") from error
        self._check_extents(entries, start, size)
        return entries, metadata

    def _entry(self, name: str, value: Mapping[str, Any], data_start: int) -> Entry:
        dtype, shape = value["dtype"], tuple(value["shape"])
        begin, end = value["data_offsets"]
        if dtype not in DTYPES:
            raise self._error(
                f"{self.path}: tensor {name} is {dtype!r}, which is not one of {', '.join(DTYPES)}",
                "give a copy in one of them, such as the bfloat16 one that it was made from",
            )
        if not all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)):
            raise ValueError(f"tensor {name} has a negative or fractional shape or offset")
        entry = Entry(dtype, shape, data_start + begin)
        if entry.part.byte_count != end - begin:
            raise ValueError(f"tensor {name} is {end - begin} bytes, its shape needs another count")
        return entry

    def _check_extents(self, entries: Mapping[str, Entry], start: int, size: int) -> None:
        position = start
        for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
            if entry.start != position:
                raise self._wrong(f"tensor {name} overlaps another or leaves a hole")
            position += entry.part.byte_count
        if position != size:
            raise self._wrong(f"{size} bytes long, its header needs {position}")

    def _wrong(self, found: str) -> LutraError:
        return self._error(f"{self.path}: {found}", "copy or download the file again")


def to_float32(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Values of a safetensors dtype as float32; bfloat16 is the upper half of a float32."""
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # float64 beyond the range becomes infinity
        return values.astype(np.float32)


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Finite float32 rounded to the nearest bfloat16 (ties to even), as uint16."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class TensorFileWriter:
    """Writes a safetensors file whose tensors are all known beforehand, in any order.

    Parts of type uint16 are bfloat16.

    The file has its full size from the start, so a full disk shows up before the work where the
    file system can tell, and an interrupted write can go on where it stopped (`resume`).
    """

    def __init__(self, path: Path, parts: Mapping[str, Part], *, resume: bool = False) -> None:
        self.path = path
        self._header, self._starts = _layout(parts)
        self._parts = parts
        # Unbuffered: blocks are large, and a full disk shows up in the write that meets it.
        self._file = path.open("r+b" if resume else "w+b", buffering=0)
        if not resume:
            try:
                _reserve(self._file.fileno(), self.byte_count)
                self._write(0, self._header)
            except OSError:
                self._file.close()
                raise

    @staticmethod
    def begun(path: Path, parts: Mapping[str, Part]) -> bool:
        """Whether a file of these parts was begun at `path` and can be resumed."""
        header, _ = _layout(parts)
        size = len(header) + sum(part.byte_count for part in parts.values())
        if not path.is_file() or path.stat().st_size != size:
            return False
        with path.open("rb") as file:
            return file.read(len(header)) == header

    @property
    def byte_count(self) -> int:
        """Size of the whole file."""
        return len(self._header) + sum(part.byte_count for part in self._parts.values())

    def write(self, name: str, values: NDArray[Any], first: int = 0) -> None:
        """Write `values` as rows `first` and on of the tensor's leading dimension."""
        part = self._parts[name]
        row_bytes = part.byte_count // part.shape[0]
        assert values.dtype == np.dtype(part.dtype), (name, values.dtype, part.dtype)
        assert values.shape[1:] == part.shape[1:], (name, values.shape, part.shape)
        assert first + values.shape[0] <= part.shape[0], (name, first, values.shape)
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        self._write(self._starts[name] + first * row_bytes, data)

    def sync(self) -> None:
        """Make sure that what was written is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _write(self, position: int, data: bytes | memoryview) -> None:
        """Write all of `data`; one call to the system may take less."""
        self._file.seek(position)
        while data:
            data = data[self._file.write(data) :]


def _layout(parts: Mapping[str, Part]) -> tuple[bytes, dict[str, int]]:
    """The header, padded so that data starts aligned, and where each tensor starts in the file.

    Tensors of whole vectors of 128 bytes come first, then those of whole lines of 64, then the rest
    by falling element size, so that packed arrays are aligned for vector loads and all others for
    their own type.
    """

    def order(name: str) -> tuple[int, int, int]:
        part = parts[name]
        ragged = part.byte_count % LINE_BYTES != 0
        rank = (part.byte_count % ALIGNMENT != 0) + ragged
        return rank, -np.dtype(part.dtype).itemsize if ragged else 0, positions[name]

    positions = {name: index for index, name in enumerate(parts)}
    offset = 0
    fields: dict[str, object] = {}
    starts: dict[str, int] = {}
    for name in sorted(parts, key=order):
        part = parts[name]
        end = offset + part.byte_count
        fields[name] = {
            "dtype": _NAMES[part.dtype],
            "shape": part.shape,
            "data_offsets": [offset, end],
        }
        starts[name], offset = offset, end
    header = json.dumps(fields, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    prefix = len(header).to_bytes(8, "little") + header
    return prefix, {name: len(prefix) + start for name, start in starts.items()}


def _reserve(descriptor: int, size: int) -> None:
    """Take the file's whole size now where the system can; otherwise make it sparse."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as error:
            if error.errno != 95:  # EOPNOTSUPP: this file system cannot reserve
                raise
    os.truncate(descriptor, size)
