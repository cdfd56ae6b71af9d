"""What a bundle's scales and zeros are to the lookup kernels: integers, with one float for a row.

The planes are used as they lie in the bundle. Scales of groups become int16 fractions of the row's
largest one; zeros become what the sum of a group's activations is multiplied by. Both are made when
a bundle is opened, and take as much memory as the float16 scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.formats import Format
from edge.planes import TILE, tile_count, zeros_of
from npu.hvx.tables import BLOCK

# What 1 is as a fraction.
ONE = 32768

# The largest fraction.
LARGEST = 32767

# 8-bit products are divided by this before they are scaled, so that they fit.
BYTE_SHIFT = 6


@dataclass(frozen=True)
class RowScales:
    """Scales of a tensor's rows.

    units float32 [tiles * 64]: a row's factor. steps int16 [tiles, groups, 64]: fractions of 32768,
    where scales are of groups. offsets int16 [tiles, pairs of groups, 2, 32, 2] where formats are
    asymmetric: offsets times scales, of even rows and of odd ones, two groups to a row (`zeros`).
    """

    units: NDArray[np.float32]
    steps: NDArray[np.int16] | None
    offsets: NDArray[np.int16] | None


def group_of(form: Format) -> int:
    """Weights that share an accumulation."""
    return form.group if form.granularity == "group" else BLOCK


def offset_of(form: Format) -> int:
    """What the sum of a group's activations is multiplied by, in a symmetric format."""
    return int(-form.zero if form.bits == 8 else 2**form.bits - 1 - 2 * form.zero)


def row_scales(form: Format, parts: Mapping[str, NDArray[Any]], rows: int) -> RowScales:
    """Scales of a tensor from its arrays in the bundle."""
    tiles = tile_count(rows)
    scales = np.broadcast_to(parts["scales"], (tiles, parts["scales"].shape[1], TILE))
    largest = np.abs(scales).max(axis=1).astype(np.float32)  # [tiles, 64]
    factor = np.float32(1 << BYTE_SHIFT if form.bits == 8 else 0.5)
    if form.granularity != "group":
        units = scales[:, 0].astype(np.float32) * factor
        return RowScales(units.reshape(-1), None, _offsets(form, parts, np.float32(ONE)))
    one = largest * np.float32(ONE / LARGEST)
    inverse = np.where(one > 0, ONE / np.maximum(one, np.float32(1e-30)), 0)[:, None]
    shares = scales.astype(np.float32) * inverse
    steps = np.rint(shares).astype(np.int16)
    return RowScales((one * factor).reshape(-1), steps, _offsets(form, parts, shares))


def _offsets(
    form: Format, parts: Mapping[str, NDArray[Any]], shares: np.float32 | NDArray[np.float32]
) -> NDArray[np.int16] | None:
    """2^bits - 1 - 2 zero (for 8 bits, minus the zero), over 2^bits, times groups' scales."""
    if not form.asymmetric:
        return None
    wide = zeros_of(form, parts["zeros"])
    offsets = -wide if form.bits == 8 else np.float32(2**form.bits - 1) - 2 * wide
    scaled = np.rint(offsets * shares * np.float32(2.0**-form.bits))
    scaled = scaled.clip(max=LARGEST).astype(np.int16)  # at 1 bit an offset may be all of 2
    padded = np.pad(scaled, ((0, 0), (0, scaled.shape[1] % 2), (0, 0)))
    parted = padded.reshape(len(scaled), -1, 2, TILE // 2, 2)  # [.., group, rows, parity]
    return np.ascontiguousarray(parted.transpose(0, 1, 4, 3, 2))
