"""The values that codes can stand for: scales and zeros of every group, and a search for good ones.

Weights are laid out as [rows, groups, size], the last group of a row filled with zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.quantize import onebit
from converter.quantize import scales as stored
from edge.formats import Format
from edge.planes import Quantized, stored_zeros

Floats = NDArray[np.float32]

# Ranges tried, as shares of the group's own. Under a third nothing was ever best; over 1 the
# largest weight falls between the last two codes.
SHARES = np.linspace(0.35, 1.1, 26, dtype=np.float32)

# Of a float32's 31 bits of magnitude, those under the exponent and 8 bits of the fraction.
_LOW_BITS = 15
_BINS = 1 << (31 - _LOW_BITS)


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
        zeros = stored_zeros(self.form, self.zeros) if self.form.asymmetric else None
        return Quantized(codes.astype(np.uint8), scales, zeros)


def search_grid(form: Format, rows: Floats, energy: NDArray[np.floating]) -> Grid:
    """The grid whose nearest codes have the least error, weighted by the inputs' energy [width].

    Every group picks its own among ranges of `SHARES` of its own range: for symmetric formats on
    either side of 0 (the code range is one step longer on one), for asymmetric ones with every
    zero; ternary ones the threshold, and those of 1 bit their two values. For formats with a scale
    a group or a channel.
    """
    grouped = group(form, rows)  # [rows, groups, size]
    weights = group(form, np.asarray(energy, np.float32)[None])
    if form.kind == "ternary":
        return Grid(form, *_ternary(form, grouped, weights))
    if form.bits == 1:
        return Grid(form, *onebit.fit(form, grouped, weights))
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
                yield stored.nearest(form, share * spread), zero
        return
    step = peak / np.float32(form.zero)
    for share in SHARES:
        for sign in (1, -1):
            yield stored.nearest(form, sign * share * step), float(form.zero)


def _ternary(form: Format, grouped: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Scales and zeros of the thresholds of least error, each group's found exactly.

    Whatever a group's scale, what is kept is what is largest; with the k largest kept, the best
    scale is their weighted mean, and takes (sum h w)^2 / sum h off the error. So every k is tried.
    """
    magnitudes = np.abs(grouped)
    order = np.argsort(-magnitudes, axis=2, kind="stable")
    magnitudes = np.take_along_axis(magnitudes, order, axis=2)
    shares = np.take_along_axis(np.broadcast_to(weights, grouped.shape), order, axis=2)
    total = np.cumsum(shares, axis=2, dtype=np.float64)
    total = np.maximum(total, np.finfo(np.float32).tiny)  # inputs that are always 0
    kept = np.cumsum(shares * magnitudes, axis=2, dtype=np.float64)
    best = np.argmax(kept * kept / total, axis=2)[:, :, None]
    scales = np.take_along_axis(kept / total, best, axis=2)[:, :, 0]
    return stored.nearest(form, scales), np.full(scales.shape, form.zero, np.float32)


def fit_threshold(blocks: Iterable[Floats]) -> float:
    """The one ternary scale of a tensor, given as blocks of rows, whose threshold errs least.

    As for groups, over a histogram of the magnitudes whose bins are 1/256 wide.
    """
    counts, sums = (np.zeros(_BINS) for _ in range(2))
    for block in blocks:
        magnitudes = np.abs(np.asarray(block, np.float32)).reshape(-1)
        bins = magnitudes.view(np.uint32) >> _LOW_BITS  # floats are in the order of their bits
        counts += np.bincount(bins, minlength=_BINS)
        sums += np.bincount(bins, magnitudes, minlength=_BINS)
    total, kept = np.cumsum(counts[::-1]), np.cumsum(sums[::-1])
    scales = kept / np.maximum(total, 1)
    return float(scales[np.argmax(kept * scales)]) or 1e-5


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
