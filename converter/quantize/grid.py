"""The values that codes can stand for: scales and zeros of every group, and a search for good ones.

Weights are laid out as [rows, groups, size], the last group of a row filled with zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import BadWeights
from edge.formats import Format
from edge.planes import Quantized

Floats = NDArray[np.float32]

# Ranges tried, as shares of the group's own. Under a third nothing was ever best; over 1 the
# largest weight falls between the last two codes.
SHARES = np.linspace(0.35, 1.1, 26, dtype=np.float32)


@dataclass(frozen=True)
class Grid:
    """Scales [rows, groups] of a format, as they will be stored, and zeros where it has its own.

    A scale that the whole tensor shares is repeated here.
    """

    form: Format
    scales: Floats
    zeros: Floats

    def columns(self, width: int) -> tuple[Floats, Floats]:
        """Scale and zero of every weight, [rows, width] each."""
        size = self.form.group_size(width)
        return (
            np.repeat(self.scales, size, axis=1)[:, :width],
            np.repeat(self.zeros, size, axis=1)[:, :width],
        )

    def nearest(self, rows: Floats) -> Floats:
        """The closest code of each weight, as float32 [rows, width]."""
        scales, zeros = self.columns(rows.shape[1])
        steps = rows / np.where(scales == 0, np.float32(np.inf), scales) + zeros
        codes: Floats = np.clip(np.rint(steps), 0, self.form.levels - 1).astype(np.float32)
        return codes

    def decode(self, codes: Floats) -> Floats:
        """What codes [rows, width] stand for, float32."""
        scales, zeros = self.columns(codes.shape[1])
        return (codes - zeros) * scales

    def quantized(self, codes: Floats) -> Quantized:
        """Codes with the grid, in the types that are stored."""
        scales: NDArray[Any] = self.scales
        if self.form.granularity == "tensor":
            scales = self.scales[:1, :1]
        elif self.form.granularity == "group":
            scales = self.scales.astype(np.float16)
        zeros = self.zeros.astype(np.uint8) if self.form.asymmetric else None
        return Quantized(codes.astype(np.uint8), scales, zeros)


def stored_scales(form: Format, scales: NDArray[np.floating]) -> Floats:
    """Scales rounded to what is stored. Raises BadWeights where float16 does not reach them."""
    narrow: Floats = scales.astype(np.float32)
    if form.granularity == "group":
        with np.errstate(over="ignore"):
            narrow = scales.astype(np.float16).astype(np.float32)
    if not np.isfinite(narrow).all():
        raise BadWeights(
            f"weights reach {np.abs(scales).max() * form.zero:.3g}, over the range of {form}",
            "use a channel format such as w8gc, or f32",
        )
    return narrow


def search_grid(form: Format, rows: Floats, energy: NDArray[np.floating]) -> Grid:
    """The grid whose nearest codes have the least error, weighted by the inputs' energy [width].

    Every group picks its own among ranges of `SHARES` of its own range: for symmetric formats on
    either side of 0 (the code range is one step longer on one), for asymmetric ones with every
    zero. For formats with a scale a group or a channel.
    """
    grouped = group(form, rows)  # [rows, groups, size]
    weights = group(form, np.asarray(energy, np.float32)[None])
    least = np.full(grouped.shape[:2], np.inf, np.float32)
    scales, zeros = np.zeros_like(least), np.full_like(least, form.zero)
    for found, zero in _candidates(form, grouped):
        errors = _errors(form, grouped, weights, found, zero)
        better = errors < least
        least[better], scales[better], zeros[better] = errors[better], found[better], zero
    return Grid(form, scales, zeros)


def group(form: Format, rows: Floats) -> Floats:
    """Rows as [rows, groups, size], the last group filled with zeros."""
    count, width = rows.shape
    size, groups = form.group_size(width), form.group_count(width)
    padded = np.pad(rows, ((0, 0), (0, groups * size - width)))
    return padded.reshape(count, groups, size)


def _candidates(form: Format, grouped: Floats) -> Iterator[tuple[Floats, float]]:
    low, high = grouped.min(axis=2), grouped.max(axis=2)
    peak = np.maximum(-low, high)
    if form.asymmetric:
        spread = (np.maximum(high, 0) - np.minimum(low, 0)) / np.float32(form.levels - 1)
        for share in SHARES:
            for zero in _zeros(form):
                yield stored_scales(form, share * spread), zero
        return
    step = peak / np.float32(max(form.zero, 1))
    signs = (1,) if form.kind == "ternary" else (1, -1)
    for share in SHARES:
        for sign in signs:
            yield stored_scales(form, sign * share * step), float(form.zero)


def _zeros(form: Format) -> range:
    """Zeros worth trying: all codes up to 4 bits, every 16th of 8."""
    return range(0, form.levels, max(form.levels // 16, 1))


def _errors(form: Format, grouped: Floats, weights: Floats, scales: Floats, zero: float) -> Floats:
    spread = scales[:, :, None]
    steps = grouped / np.where(spread == 0, np.float32(np.inf), spread)
    np.rint(steps, out=steps)  # the zero is whole, so it may be left out of the rounding
    np.clip(steps, -zero, form.levels - 1 - zero, out=steps)
    steps *= spread
    steps -= grouped
    return np.einsum("rgs,rgs,xgs->rg", steps, steps, weights, optimize=False)
