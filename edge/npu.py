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
from edge.pieces import Piece, layer_pieces, static_pieces
from edge.records import make
from edge.target import Target

# Bits of weights and of activations. w8a8 alone leaves outliers to the CPU; 16 bits hold them.
Mode = Literal["w8a8", "w8a16", "w4a16"]

# What is on the NPU: projections between the CPU's float ops, or layers whole.
Form = Literal["pieces", "layers"]

# Chunk lengths that NPU graphs are made for.
CHUNKS = (32, 64, 128, 256)

Floats = NDArray[np.float32]
Codes = NDArray[np.integer[Any]]


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
    inputs of projections. `signed` codes have their zero in the middle, as keys and values must:
    the HTP takes one factor of a product of two activations in no other form of 16 bits.
    """

    value: str
    bits: int
    scale: float
    zero: int
    low: float
    high: float
    scaled: bool = False
    outliers: Outliers | None = None
    signed: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the codes."""
        return np.dtype(f"{'int' if self.signed else 'uint'}{self.bits}")

    @property
    def least(self) -> np.float32:
        """The smallest value inside the range."""
        return np.float32((self._codes[0] - self.zero) * self.scale)

    @property
    def most(self) -> np.float32:
        """The largest value inside the range."""
        return np.float32((self._codes[1] - self.zero) * self.scale)

    @property
    def _codes(self) -> tuple[int, int]:
        """The ends of the codes; signed ones are as many on either side."""
        top = (1 << (self.bits - self.signed)) - 1
        return (-top if self.signed else 0), top

    @property
    def restored(self) -> bool:
        return self.outliers is not None and self.outliers.restored

    def encode(self, values: Floats) -> Codes:
        """Codes of float values; those outside of the range are clipped."""
        codes = np.rint(values / np.float32(self.scale))
        codes += np.float32(self.zero)
        np.clip(codes, *self._codes, out=codes)
        return codes.astype(self.dtype)

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


def balanced(value: str, low: float, high: float) -> Activation:
    """Signed codes of 16 bits that reach as far on either side."""
    peak = max(-low, high, 1e-12)
    return Activation(value, 16, float(np.float32(peak / 32767)), 0, low, high, signed=True)


@dataclass(frozen=True)
class Calibration:
    """Where the ranges come from: the text, its length, and the choices that were made.

    `pruned` is the share of layers, the least important ones, whose outliers are not restored.
    `smoothing` is SmoothQuant's alpha, 0 for none. `layer_importance` is each layer's largest.
    `gptq` says that weights were found by calibration, and not rounded to nearest.
    """

    text: str
    tokens: int
    pruned: float
    smoothing: float
    layer_importance: tuple[float, ...]
    gptq: bool = False


@dataclass(frozen=True)
class Binary:
    """A graph made ready for a target; `soc` is empty for graphs that are not compiled.

    `piece` is the graph's name: that of its piece, and for layers of its chunk length too. `path`
    is the ONNX file to open, `context` the context binary beside it that it refers to. A `shared`
    one has all graphs, and weights that two of them read once; Qualcomm's emulation does not load
    it.
    """

    piece: str
    target: Target
    soc: str
    path: str
    context: str | None = None
    shared: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        return (self.path,) if self.context is None else (self.path, self.context)


@dataclass(frozen=True)
class NpuRecord:
    """The NPU program of a bundle.

    `rows` is the chunk length; whole layers have graphs for one token too, and take `positions` of
    them at most. `float_gates` are the gates that the CPU computes. `shadow` is the
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
    form: Form = "pieces"
    positions: int = 0

    def pieces(self, graph: Graph) -> tuple[Piece, ...]:
        """The graph's pieces, cut as this program was."""
        if self.form == "layers":
            return layer_pieces(graph)
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
