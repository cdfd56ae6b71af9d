"""Outliers: taken out of what the NPU is given, multiplied on the CPU, added to what it makes.

y = W clip(x) + W (x - clip(x)) (llm.npu, section 3.3). The second term has as many multiply-adds as
there are outliers, times the outputs. Its weights are columns of W: those of hot channels are kept
in memory as the converter stored them, the others are read from the bundle's mapped weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.bundle import Bundle
from edge.errors import TruncatedBundle
from edge.npu import Activation, Codes
from edge.tensorfile import TensorFile

Floats = NDArray[np.float32]

# Weights multiplied at a time: 16 MB in float32.
_BLOCK_VALUES = 1 << 22


@dataclass(frozen=True)
class Extracted:
    """What clipping cut off: `cut` of the value at `rows`, `channels`; rows ascend. All [outliers].

    `cut` is of the value as the weights of the model see it, before smoothing.
    """

    rows: NDArray[np.intp]
    channels: NDArray[np.intp]
    cut: Floats


def split(
    activation: Activation, x: Floats, factors: Floats | None = None
) -> tuple[Codes, Extracted]:
    """Codes of x [rows, channels] for the NPU, clipped, and what was cut off."""
    scaled = x if factors is None else x / factors
    clipped = np.clip(scaled, activation.least, activation.most)
    rows, channels = np.nonzero(scaled != clipped) if activation.restored else _NONE
    cut = scaled[rows, channels] - clipped[rows, channels]
    if factors is not None:
        cut = cut * factors[channels]
    return activation.encode(clipped), Extracted(rows, channels, cut)


_NONE = (np.empty(0, np.intp), np.empty(0, np.intp))


class ShadowWeights:
    """Columns of a bundle's weights, and factors of channels, as its shadow file has them."""

    def __init__(
        self, bundle: Bundle, file: str | None, hot: Mapping[str, tuple[int, ...]]
    ) -> None:
        self._bundle = bundle
        self._hot: dict[str, Floats] = {}
        self._places: dict[str, NDArray[np.intp]] = {}
        self._factors: dict[str, Floats] = {}
        if file is not None:
            self._read(TensorFile(bundle.folder / file, TruncatedBundle), hot)

    def _read(self, file: TensorFile, hot: Mapping[str, tuple[int, ...]]) -> None:
        for name in file.entries:
            tensor, _, part = name.rpartition(".")
            values = file.array(name).astype(np.float32)
            if part == "factors":
                self._factors[tensor] = values
            else:
                self._hot[tensor] = values
                self._places[tensor] = _places(
                    self._bundle.graph.tensor(tensor).shape[1], hot[tensor]
                )

    @property
    def byte_count(self) -> int:
        """Bytes of outlier weights in memory."""
        return sum(values.nbytes for values in self._hot.values())

    def factors(self, value: str) -> Floats | None:
        """What the NPU holds a value's channels divided by; None where they are as they are."""
        return self._factors.get(value)

    def columns(self, tensor: str, channels: NDArray[np.intp]) -> Floats:
        """Columns of a weight tensor as float32 [channels, out]."""
        if tensor not in self._hot:
            return self._bundle.tensor(tensor).columns(channels)
        places = self._places[tensor][channels]
        made = self._hot[tensor][places]
        cold = places < 0
        if cold.any():
            made[cold] = self._bundle.tensor(tensor).columns(channels[cold])
        return made

    def restore(self, tensor: str, found: Extracted, out: Floats) -> int:
        """Add W times what was cut off to `out` [rows, out]; returns the outliers' multiply-adds.

        Rows and channels that have an outlier make one dense product: with the zeros in it, it is
        several times faster than summing a column for each outlier.
        """
        rows, row_places = np.unique(found.rows, return_inverse=True)
        used, places = np.unique(found.channels, return_inverse=True)
        cut = np.zeros((len(rows), len(used)), np.float32)
        cut[row_places, places] = found.cut
        sums = np.zeros((len(rows), out.shape[1]), np.float32)
        step = max(_BLOCK_VALUES // out.shape[1], 1)
        for first in range(0, len(used), step):
            block = slice(first, first + step)
            sums += cut[:, block] @ self.columns(tensor, used[block])
        out[rows] += sums
        return len(found.cut) * out.shape[1]


def _places(width: int, hot: tuple[int, ...]) -> NDArray[np.intp]:
    """Where each channel stands among the hot ones; -1 where it is none."""
    places = np.full(width, -1, np.intp)
    places[list(hot)] = np.arange(len(hot))
    return places
