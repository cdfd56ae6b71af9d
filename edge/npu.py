"""What a bundle says of its NPU program: how each activation is quantized, and what was compiled.

Activations have one static scale a tensor, from calibration. What falls outside of its range is an
outlier: the NPU sees it clipped, and the CPU adds what was cut off times the weights (llm.npu,
section 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge.graph import Graph
from edge.pieces import Piece, static_pieces
from edge.records import make
from edge.target import Target

# Bits of weights and of activations. w8a8 alone leaves outliers to the CPU; 16 bits hold them.
Mode = Literal["w8a8", "w8a16", "w4a16"]

# Chunk lengths that NPU graphs are made for.
CHUNKS = (32, 64, 128, 256)

Floats = NDArray[np.float32]
Codes = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Outliers:
    """What calibration saw outside of a tensor's 8-bit range.

    `threshold` is the largest magnitude inside; `share` is how many elements were outside;
    `channels` how many channels ever had one, and `hot_channels` the fewest that had 80 % of them.
    `importance` is the largest magnitude over the threshold. `restored` says whether the CPU adds
    what was clipped.
    """

    threshold: float
    share: float
    channels: int
    hot_channels: tuple[int, ...]
    importance: float
    restored: bool


@dataclass(frozen=True)
class Activation:
    """A value as the NPU holds it: (code - zero) * scale, with codes of 8 or 16 bits.

    `low` and `high` are the ends of what calibration saw. `scaled` says that each channel is
    divided by a factor of its own before, which the weights have in them. `outliers` is given for
    inputs of projections.
    """

    value: str
    bits: int
    scale: float
    zero: int
    low: float
    high: float
    scaled: bool = False
    outliers: Outliers | None = None

    @property
    def least(self) -> np.float32:
        """The smallest value inside the range."""
        return np.float32(-self.zero * self.scale)

    @property
    def most(self) -> np.float32:
        """The largest value inside the range."""
        return np.float32(((1 << self.bits) - 1 - self.zero) * self.scale)

    @property
    def restored(self) -> bool:
        return self.outliers is not None and self.outliers.restored

    def encode(self, values: Floats) -> Codes:
        """Codes of float values; those outside of the range are clipped."""
        codes = np.rint(values / np.float32(self.scale))
        codes += np.float32(self.zero)
        np.clip(codes, 0, (1 << self.bits) - 1, out=codes)
        return codes.astype(np.uint8 if self.bits == 8 else np.uint16)

    def decode(self, codes: Codes) -> Floats:
        """Float values of codes."""
        values: Floats = codes.astype(np.float32)
        values -= np.float32(self.zero)
        values *= np.float32(self.scale)
        return values


def spanning(value: str, bits: int, low: float, high: float) -> Activation:
    """The quantization whose range reaches from `low` to `high`, and to 0 where they do not.

    Zero is a code exactly, so that padding is exact.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    levels = (1 << bits) - 1
    scale = float(np.float32(max((high - low) / levels, 1e-12)))
    return Activation(value, bits, scale, min(round(-low / scale), levels), low, high)


@dataclass(frozen=True)
class Calibration:
    """Where the ranges come from: the text, its length, and the choices that were made.

    `pruned` is the share of layers, the least important ones, whose outliers are not restored.
    `smoothing` is SmoothQuant's alpha, 0 for none. `layer_importance` is each layer's largest.
    """

    text: str
    tokens: int
    pruned: float
    smoothing: float
    layer_importance: tuple[float, ...]


@dataclass(frozen=True)
class Binary:
    """A piece made ready for a target; `soc` is empty for graphs that are not compiled.

    `path` is the ONNX file to open, `context` the context binary beside it that it refers to.
    """

    piece: str
    target: Target
    soc: str
    path: str
    context: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        return (self.path,) if self.context is None else (self.path, self.context)


@dataclass(frozen=True)
class NpuRecord:
    """The NPU program of a bundle.

    `rows` is the chunk length. `float_gates` are the gates that the CPU computes. `shadow` is the
    file of outlier weights, those of hot channels, and of channels' factors. `tools` are the
    versions of what made the binaries.
    """

    mode: Mode
    rows: int
    float_gates: tuple[str, ...]
    activations: tuple[Activation, ...]
    calibration: Calibration
    binaries: tuple[Binary, ...]
    tools: Mapping[str, str]
    shadow: str | None = None

    def pieces(self, graph: Graph) -> tuple[Piece, ...]:
        """The graph's pieces, cut as this program was."""
        return static_pieces(graph, self.float_gates)

    @property
    def weight_bits(self) -> int:
        return 4 if self.mode == "w4a16" else 8

    def by_value(self) -> dict[str, Activation]:
        return {activation.value: activation for activation in self.activations}


def to_json(record: NpuRecord) -> dict[str, Any]:
    """The record as plain JSON values."""
    binaries = [vars(binary) | {"target": str(binary.target)} for binary in record.binaries]
    return asdict(record) | {"binaries": binaries}


def from_json(data: Mapping[str, Any]) -> NpuRecord:
    """Read back what `to_json` wrote. Raises TypeError, KeyError or UnknownTarget."""
    parts = {
        "activations": [_activation(one) for one in data["activations"]],
        "calibration": make(Calibration, data["calibration"]),
        "binaries": [
            make(Binary, {**one, "target": Target.parse(one["target"])}) for one in data["binaries"]
        ],
    }
    return make(NpuRecord, {**data, **parts})


def _activation(data: Mapping[str, Any]) -> Activation:
    outliers = data.get("outliers")
    made = None if outliers is None else make(Outliers, outliers)
    return make(Activation, {**data, "outliers": made})
