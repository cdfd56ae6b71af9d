"""The bit-serial weight layout: one copy of the weights that prefill and decode both read.

Rows are cut into tiles of 64. Within a tile, for every step of 8 weights along the row and for
every bit plane, there are 64 bytes, one a row: bit j of the byte is the plane's bit of weight
8*step + j. So a byte is two nibbles, a nibble is one plane of 4 neighbouring weights, and

* a vector of 16, 32 or 64 rows (half a tile's two planes for 128) is one plain load, whose low
  nibbles index the partial-sum table of activations 8s..8s+3 and whose high nibbles that of
  8s+4..8s+7, both into the same accumulators (T-MAC, arXiv 2407.00088, section 3; T-MAN,
  arXiv 2511.11248, section 4.1);
* 16 rows spread through a 16-entry table of 32-bit words are 16 columns by 4 codes, the operand
  order of the matrix units.

8-bit codes are bytes in that operand order. Scales and zeros follow the tiles. Rows are padded to
a tile and a row to a step; padding is zero bits and is never read back.

Arrays (tiles = ceil(rows / 64)):

    planes  uint8    [tiles, ceil(width / 8), bits, 64]     1 to 4 bits and ternary
    codes   uint8    [tiles, ceil(width / 4), 64, 4]        8 bits
    scales  float16  [tiles, groups, 64]                    one a group of weights
            float32  [tiles, 1, 64]                         one a channel; [1, 1, 1] one a tensor
    zeros   uint8    [tiles, groups, 64]                    asymmetric formats
    values  float    [rows, width]                          f16 and f32, plain rows
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.formats import Format

TILE = 64
STEP = 8
QUAD = 4

Codes = NDArray[np.uint8]


def tile_count(rows: int) -> int:
    """Tiles that hold `rows` rows."""
    return -(-rows // TILE)


def pack_planes(codes: Codes, bits: int) -> Codes:
    """Codes [rows, width] below 2^bits -> planes [tiles, steps, bits, 64]."""
    tiles, steps = tile_count(codes.shape[0]), -(-codes.shape[1] // STEP)
    padded = _pad(codes, tiles * TILE, steps * STEP)
    planes = [np.packbits((padded >> bit) & 1, axis=1, bitorder="little") for bit in range(bits)]
    stacked = np.stack(planes, axis=-1).reshape(tiles, TILE, steps, bits)
    return np.ascontiguousarray(stacked.transpose(0, 2, 3, 1))


def unpack_planes(planes: Codes, rows: int, width: int) -> Codes:
    """Planes [tiles, steps, bits, 64] -> codes [rows, width]."""
    tiles, steps, bits, _ = planes.shape
    by_row = planes.transpose(0, 3, 1, 2).reshape(tiles * TILE, steps, bits)[:rows]
    return join_planes(by_row, width)


def join_planes(by_row: Codes, width: int) -> Codes:
    """Bytes of each plane, row by row, [rows, steps, bits] -> codes [rows, width]."""
    codes = np.zeros((by_row.shape[0], width), np.uint8)
    for bit in range(by_row.shape[2]):
        plane = np.unpackbits(by_row[:, :, bit], axis=1, bitorder="little")[:, :width]
        codes |= plane << bit
    return codes


def pack_bytes(codes: Codes) -> Codes:
    """Codes [rows, width] of 8 bits -> [tiles, quads, 64, 4]."""
    tiles, quads = tile_count(codes.shape[0]), -(-codes.shape[1] // QUAD)
    padded = _pad(codes, tiles * TILE, quads * QUAD).reshape(tiles, TILE, quads, QUAD)
    return np.ascontiguousarray(padded.transpose(0, 2, 1, 3))


def unpack_bytes(packed: Codes, rows: int, width: int) -> Codes:
    """Bytes [tiles, quads, 64, 4] -> codes [rows, width]."""
    tiles, quads = packed.shape[:2]
    plain = packed.transpose(0, 2, 1, 3).reshape(tiles * TILE, quads * QUAD)
    return np.ascontiguousarray(plain[:rows, :width])


def pack_groups(values: NDArray[Any]) -> NDArray[Any]:
    """Scales or zeros [rows, groups] -> [tiles, groups, 64]."""
    tiles = tile_count(values.shape[0])
    padded = _pad(values, tiles * TILE, values.shape[1]).reshape(tiles, TILE, -1)
    return np.ascontiguousarray(padded.transpose(0, 2, 1))


def unpack_groups(packed: NDArray[Any], rows: int) -> NDArray[Any]:
    """Scales or zeros [tiles, groups, 64] -> [rows, groups]."""
    tiles, groups, _ = packed.shape
    return packed.transpose(0, 2, 1).reshape(tiles * TILE, groups)[:rows]


def _pad(values: NDArray[Any], rows: int, width: int) -> NDArray[Any]:
    return np.pad(values, ((0, rows - values.shape[0]), (0, width - values.shape[1])))


@dataclass(frozen=True)
class Part:
    """Type and shape of one stored array of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def byte_count(self) -> int:
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)  # whole, whatever the shape


def parts_of(form: Format, shape: tuple[int, ...]) -> dict[str, Part]:
    """The arrays that a tensor of `shape` in format `form` is stored as."""
    if form.kind == "float":
        return {"values": Part(f"float{form.bits}", shape)}
    rows, width = shape
    tiles, groups = tile_count(rows), form.group_count(width)
    if form.bits == 8:
        parts = {"codes": Part("uint8", (tiles, -(-width // QUAD), TILE, QUAD))}
    else:
        parts = {"planes": Part("uint8", (tiles, -(-width // STEP), form.bits, TILE))}
    if form.granularity == "tensor":
        return parts | {"scales": Part("float32", (1, 1, 1))}
    dtype = "float16" if form.granularity == "group" else "float32"
    parts["scales"] = Part(dtype, (tiles, groups, TILE))
    if form.asymmetric:
        parts["zeros"] = Part("uint8", (tiles, groups, TILE))
    return parts


@dataclass(frozen=True)
class Quantized:
    """Rows of a tensor as codes with their scales, before packing.

    codes [rows, width] uint8; scales [rows, groups] float; zeros [rows, groups] uint8, as they are
    stored (see `zeros_of`), or None.
    A scale for the whole tensor has shape [1, 1].
    """

    codes: Codes
    scales: NDArray[Any]
    zeros: Codes | None = None


def pack(form: Format, rows: Quantized) -> dict[str, NDArray[Any]]:
    """Lay quantized rows out as the arrays that `parts_of` describes."""
    whole = form.granularity == "tensor"
    scales = rows.scales.reshape(1, 1, 1) if whole else pack_groups(rows.scales)
    packed = {"scales": scales}
    if form.bits == 8:
        packed["codes"] = pack_bytes(rows.codes)
    else:
        packed["planes"] = pack_planes(rows.codes, form.bits)
    if rows.zeros is not None:
        packed["zeros"] = pack_groups(rows.zeros)
    return packed


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a bundle: its format, its logical shape, and its arrays (often mapped)."""

    name: str
    form: Format
    shape: tuple[int, ...]
    parts: Mapping[str, NDArray[Any]]

    def quantized(self) -> Quantized:
        """The codes, scales and zeros of all rows. For quantized formats alone."""
        rows, width = self.shape
        if self.form.bits == 8:
            codes = unpack_bytes(self.parts["codes"], rows, width)
        else:
            codes = unpack_planes(self.parts["planes"], rows, width)
        if self.form.granularity == "tensor":
            return Quantized(codes, self.parts["scales"].reshape(1, 1))
        zeros = unpack_groups(self.parts["zeros"], rows) if self.form.asymmetric else None
        return Quantized(codes, unpack_groups(self.parts["scales"], rows), zeros)

    def dequantized(self) -> NDArray[np.float32]:
        """All weights as float32, in the tensor's own shape."""
        if not self.form.quantized:
            return self.parts["values"].astype(np.float32)
        return dequantize(self.form, self.quantized())

    def rows(self, index: NDArray[np.integer]) -> NDArray[np.float32]:
        """The rows at `index` as float32 [len(index), width]: an embedding lookup."""
        if not self.form.quantized:
            return self.parts["values"][index].astype(np.float32)
        tile, lane = np.divmod(index, TILE)
        width = self.shape[1]
        if self.form.bits == 8:
            codes = self.parts["codes"][tile, :, lane].reshape(len(index), -1)[:, :width]
        else:
            codes = join_planes(self.parts["planes"][tile, :, :, lane], width)
        if self.form.granularity == "tensor":
            return dequantize(self.form, Quantized(codes, self.parts["scales"].reshape(1, 1)))
        zeros = self.parts["zeros"][tile, :, lane] if self.form.asymmetric else None
        return dequantize(self.form, Quantized(codes, self.parts["scales"][tile, :, lane], zeros))

    def columns(self, index: NDArray[np.integer]) -> NDArray[np.float32]:
        """The columns at `index` as float32 [len(index), rows]; reads little else of the file."""
        if not self.form.quantized:
            return np.ascontiguousarray(self.parts["values"][:, index].T.astype(np.float32))
        if self.form.bits == 8:
            quad, place = np.divmod(index, QUAD)
            codes = self.parts["codes"][:, quad, :, place]  # [columns, tiles, 64]
        else:
            step, bit = np.divmod(index, STEP)
            planes = self.parts["planes"][:, step].transpose(1, 2, 0, 3)
            bits = (planes >> bit[:, None, None, None].astype(np.uint8)) & 1
            weights = (1 << np.arange(self.form.bits, dtype=np.uint8))[:, None, None]
            codes = (bits * weights).sum(axis=1, dtype=np.uint8)
        scales, group = self.parts["scales"], index
        zero: float | NDArray[np.float32] = self.form.zero
        if self.form.granularity != "tensor":
            group = index // self.form.group_size(self.shape[1])
            scales = scales[:, group].transpose(1, 0, 2)  # [columns, tiles, 64]
        if self.form.asymmetric:
            zero = zeros_of(self.form, self.parts["zeros"][:, group].transpose(1, 0, 2))
        values = (codes.astype(np.float32) - zero) * scales.astype(np.float32)
        return np.ascontiguousarray(values.reshape(len(index), -1)[:, : self.shape[0]])


def dequantize(form: Format, rows: Quantized) -> NDArray[np.float32]:
    """(code - zero) * scale in float32, [rows, width]."""
    count, width = rows.codes.shape
    size, groups = form.group_size(width), form.group_count(width)
    padded = _pad(rows.codes, count, groups * size).reshape(count, groups, size)
    zeros = form.zero if rows.zeros is None else zeros_of(form, rows.zeros)[:, :, None]
    scales = rows.scales.astype(np.float32)[:, :, None]
    weights = (padded.astype(np.float32) - np.float32(zeros)) * scales
    return np.ascontiguousarray(weights.reshape(count, groups * size)[:, :width])


def zeros_of(form: Format, stored: Codes) -> NDArray[np.float32]:
    """Stored zeros as codes, which at 1 bit need not be whole."""
    return (stored.astype(np.float32) - form.zero_first) / np.float32(form.zero_parts)


def stored_zeros(form: Format, zeros: NDArray[np.floating]) -> Codes:
    """The closest zeros that can be stored, in that form."""
    parts = np.rint(zeros * form.zero_parts) + form.zero_first
    return np.clip(parts, 0, 255).astype(np.uint8)
