"""Outliers: taken out of what the NPU is given, multiplied on the CPU, added to what it makes.

y = W clip(x) + W (x - clip(x)) (llm.npu, section 3.3). The second term has as many multiply-adds as
there are outliers, times the outputs. Its weights are columns of W: those of hot channels are kept
in memory as the converter stored them; others are read from the bundle's mapped weights when they
are first needed, and kept as long as there is room for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edge.bundle import Bundle
from edge.errors import TruncatedBundle
from edge.npu import Activation, Codes
from edge.planes import TILE, StoredTensor, tile_count
from edge.tensorfile import TensorFile

Floats = NDArray[np.float32]

# Columns that are not hot are kept in so many bytes, a few MB a layer.
COLD_BYTES = 128 << 20


@dataclass(frozen=True)
class Extracted:
    """What clipping cut off: `cut` of the value at `rows`, `channels`; rows ascend. All [outliers].

    `cut` is of the value as the weights of the model see it, before smoothing.
    """

    rows: NDArray[np.intp]
    channels: NDArray[np.intp]
    cut: Floats

    @cached_property
    def used(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The channels that have any, ascending, and which of these each outlier's is."""
        return np.unique(self.channels, return_inverse=True)


@dataclass(frozen=True)
class Columns:
    """Columns of a weight tensor: those at `places` of `values` [columns, out].

    What is behind a column, up to a whole tile, may be read.
    """

    values: Floats
    places: NDArray[np.intp]


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


def products(found: Extracted, columns: Columns, rows: int) -> Floats:
    """W times what was cut off, float32 [rows, out], of the columns that `found` uses.

    Rows and channels that have an outlier make one dense product: with the zeros in it, it is
    several times faster in NumPy than summing a column for each outlier.
    """
    _, channel_places = found.used
    used, row_places = np.unique(found.rows, return_inverse=True)
    cut = np.zeros((len(used), len(columns.places)), np.float32)
    cut[row_places, channel_places] = found.cut
    made = np.zeros((rows, columns.values.shape[1]), np.float32)
    made[used] = cut @ columns.values[columns.places]
    return made


class _Kept:
    """Columns of one tensor that are in memory: the hot ones, then others as they were needed."""

    def __init__(self, tensor: StoredTensor) -> None:
        self.out, width = tensor.shape
        self.places = np.full(width, -1, np.intp)
        self._tensor = tensor
        self._hot = self._count = 0
        self._rows = np.zeros((0, tile_count(self.out) * TILE), np.float32)

    @property
    def values(self) -> Floats:
        return self._rows[:, : self.out]

    @property
    def hot_bytes(self) -> int:
        return self._hot * self._rows[:1].nbytes

    @property
    def cold_bytes(self) -> int:
        return self._rows.nbytes - self.hot_bytes

    def keep_hot(self, channels: NDArray[np.intp], columns: Floats) -> None:
        """Keep columns for good; before any others."""
        self._add(channels, columns)
        self._hot = self._count

    def missing(self, channels: NDArray[np.intp]) -> NDArray[np.intp]:
        """Those channels whose columns are not here."""
        return channels[self.places[channels] < 0]

    def read(self, channels: NDArray[np.intp]) -> None:
        """Read columns from the bundle's mapped weights."""
        self._add(channels, self._tensor.columns(channels))

    def bytes_with(self, channels: NDArray[np.intp]) -> int:
        """Bytes that columns take."""
        return len(channels) * 4 * self._rows.shape[1]

    def forget(self) -> None:
        """Drop all but the hot ones."""
        self.places[self.places >= self._hot] = -1
        self._count = self._hot
        self._rows = self._rows[: self._hot].copy()

    def _add(self, channels: NDArray[np.intp], columns: Floats) -> None:
        end = self._count + len(channels)
        if end > len(self._rows):
            grown = np.zeros((max(end, self._count * 3 // 2), self._rows.shape[1]), np.float32)
            grown[: self._count] = self._rows[: self._count]
            self._rows = grown
        self._rows[self._count : end, : self.out] = columns
        self.places[channels] = np.arange(self._count, end)
        self._count = end


class ShadowWeights:
    """Columns of a bundle's weights, and factors of channels, as its shadow file has them.

    Columns that are not hot are kept in `cold_bytes`, or what one product needs; those of the
    tensor that was used the longest ago are dropped first.
    """

    def __init__(
        self,
        bundle: Bundle,
        file: str | None,
        hot: Mapping[str, tuple[int, ...]],
        cold_bytes: int = COLD_BYTES,
    ) -> None:
        self._bundle = bundle
        self._cold_bytes = cold_bytes
        self._kept: dict[str, _Kept] = {}  # the one used last is at the end
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
                self._kept[tensor] = _Kept(self._bundle.tensor(tensor))
                self._kept[tensor].keep_hot(np.array(hot[tensor], np.intp), values)

    @property
    def hot_bytes(self) -> int:
        """Bytes of hot channels' weights in memory."""
        return sum(kept.hot_bytes for kept in self._kept.values())

    @property
    def cold_bytes(self) -> int:
        """Bytes of other channels' weights in memory."""
        return sum(kept.cold_bytes for kept in self._kept.values())

    def factors(self, value: str) -> Floats | None:
        """What the NPU holds a value's channels divided by; None where they are as they are."""
        return self._factors.get(value)

    def columns(self, tensor: str, channels: NDArray[np.intp]) -> Columns:
        """Columns of a weight tensor, one for each of the channels, which differ.

        They are valid up to the next call.
        """
        kept = self._kept.pop(tensor, None) or _Kept(self._bundle.tensor(tensor))
        self._kept[tensor] = kept
        if len(missing := kept.missing(channels)):
            self._make_room(kept.bytes_with(missing))
            kept.read(kept.missing(channels))
        return Columns(kept.values, kept.places[channels])

    def _make_room(self, byte_count: int) -> None:
        for kept in self._kept.values():
            if self.cold_bytes + byte_count <= self._cold_bytes:
                return
            kept.forget()
