"""Weights of NPU graphs: int8 with a scale a channel, int4 with scales of blocks.

The NPU's own copy, made from float weights at conversion; the planes that decode reads are another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Number = TypeVar("Number", bound=np.number[Any])

# Weights along the input that share a scale at 4 bits.
BLOCK = 32

# Block scales are whole multiples, up to this, of a scale of their channel: the form that the HTP
# computes in integers. Other block scales make it dequantize and compute in float16.
MOST_STEPS = 16


@dataclass(frozen=True)
class Weights:
    """Codes int8 [in, out] with float32 scales: [out], or [blocks, out] at 4 bits."""

    codes: NDArray[np.int8]
    scales: Floats
    bits: int

    def padded(self, out: int) -> Weights:
        """The same with zeros behind the outputs, up to `out` of them."""
        more = (0, 0), (0, out - self.codes.shape[1])
        scales = np.pad(self.scales, more[-self.scales.ndim :], constant_values=1)
        return Weights(np.pad(self.codes, more), scales, self.bits)

    def scaled(self, factors: Floats) -> Weights:
        """The same with each output times its factor [out]."""
        return Weights(self.codes, (self.scales * factors).astype(np.float32), self.bits)

    def dequantized(self) -> Floats:
        """Float values [in, out]."""
        scales = np.repeat(self.scales, BLOCK, axis=0) if self.bits == 4 else self.scales
        values: Floats = self.codes.astype(np.float32) * scales
        return values


def quantize(rows: Floats, bits: int) -> Weights:
    """Quantize float weights [out, in]; at 4 bits, zeros are added to `in` up to whole blocks."""
    return _blocks(in_blocks(rows).T) if bits == 4 else _channels(rows.T)


def in_blocks(rows: NDArray[Number]) -> NDArray[Number]:
    """Rows with zeros behind them, up to whole blocks."""
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % BLOCK)))


def _channels(columns: Floats) -> Weights:
    scales = _nonzero(np.abs(columns).max(axis=0) / np.float32(127))
    return Weights(_codes(columns, scales, 127), scales, 8)


def _blocks(columns: Floats) -> Weights:
    """Each block takes the number of steps that leaves the least error, of those nearby."""
    blocks = columns.reshape(-1, BLOCK, columns.shape[1])
    peaks = np.abs(blocks).max(axis=1)  # [blocks, out]
    channel = _nonzero(peaks.max(axis=0) / np.float32(7 * MOST_STEPS))
    whole = np.ceil(peaks / (7 * channel))
    best, least = whole, np.full(peaks.shape, np.inf, np.float32)
    for fewer in range(4):
        steps = np.clip(whole - fewer, 1, MOST_STEPS).astype(np.float32)
        scales = (steps * channel)[:, None]
        error = np.square(_codes(blocks, scales, 7) * scales - blocks).sum(axis=1)
        best, least = np.where(error < least, steps, best), np.minimum(error, least)
    scales = (best * channel).astype(np.float32)
    return Weights(_codes(blocks, scales[:, None], 7).reshape(columns.shape), scales, 4)


def _codes(values: Floats, scales: NDArray[Any], most: int) -> NDArray[np.int8]:
    return np.clip(np.rint(values / scales), -most - (most == 7), most).astype(np.int8)


def _nonzero(scales: Floats) -> Floats:
    """Scales of channels that are all zero would divide by zero; any scale serves them."""
    return np.where(scales > 0, scales, np.float32(1)).astype(np.float32)
