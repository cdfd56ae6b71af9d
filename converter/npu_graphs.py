"""The files of a bundle's NPU program: graphs, context binaries, and weights of outliers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.calibrate import Tensors
from converter.ranges import Ranges
from edge.bundle_writer import BundleWriter
from edge.graph import Graph, Linear
from edge.npu import Binary, NpuRecord
from edge.pieces import static_pieces
from edge.planes import Part
from edge.target import Target
from edge.tensorfile import TensorFileWriter
from edge.watch import Watcher
from npu.htp import lower
from npu.htp.compile import compile_graphs
from npu.htp.graphs import make_layers
from npu.htp.lower_layer import lower_layer
from npu.htp.socs import Soc
from npu.htp.weights import Weights, quantize

Floats = NDArray[np.float32]

STAND_IN = Target("npu", "ort")

SHADOW = "npu/shadow.safetensors"


@dataclass(frozen=True)
class Parts:
    """The graph, its weights in float, and the ranges of its values.

    `calibrated` are the NPU's weights where they were found by calibration.
    """

    graph: Graph
    tensors: Tensors
    ranges: Ranges
    bits: int
    calibrated: Mapping[str, Weights] | None = None

    def of_graphs(self) -> lower.Tensors:
        """Tensors as graphs have them, with the factors of what they read and make in them."""
        ops = {op.weight: op for op in self.graph.ops() if isinstance(op, Linear)}
        return lower.Tensors(self.bits, lambda name: self.weights(ops[name]), self.tensors.dense)

    def weights(self, op: Linear) -> Weights:
        """A projection's weights for the NPU."""
        factors = self.ranges.factors
        if self.calibrated is None:
            values = self.tensors.dense(op.weight)
            values = values * factors[op.x] if op.x in factors else values
            values = values / factors[op.out][:, None] if op.out in factors else values
            return quantize(values, self.bits)
        made = self.calibrated[op.weight]
        return made.scaled(np.float32(1) / factors[op.out]) if op.out in factors else made


def write_shadow(parts: Parts, writer: BundleWriter) -> str | None:
    """Write weights of hot channels, in float16, and factors of channels; None without any.

    From the float weights: the planes that decode reads may have fewer bits than an outlier needs.
    """
    arrays: dict[str, NDArray[np.floating]] = {
        f"{value}.factors": factors for value, factors in parts.ranges.factors.items()
    }
    activations = {activation.value: activation for activation in parts.ranges.activations}
    for piece in static_pieces(parts.graph, parts.ranges.float_gates):
        for op in piece.linears:
            outliers = activations[op.x].outliers
            if outliers is not None and outliers.restored and outliers.hot_channels:
                columns = parts.tensors.dense(op.weight)[:, list(outliers.hot_channels)].T
                arrays[f"{op.weight}.hot"] = columns.astype(np.float16)
    if not arrays:
        return None
    path = writer.partial / SHADOW
    path.parent.mkdir(parents=True, exist_ok=True)
    layout = {name: Part(str(values.dtype), values.shape) for name, values in arrays.items()}
    file = TensorFileWriter(path, layout)
    for name, values in arrays.items():
        file.write(name, values)
    file.close()
    writer.include(SHADOW)
    return SHADOW


def build_graphs(
    record: NpuRecord,
    parts: Parts,
    socs: Sequence[Soc],
    writer: BundleWriter,
    watcher: Watcher,
    *,
    stand_in: bool,
) -> Iterator[Binary]:
    """Lower every graph of a program, and compile it for every SoC."""
    with tempfile.TemporaryDirectory(dir=writer.partial) as work:
        folder = writer.partial / "npu" / "ort" if stand_in else Path(work)
        folder.mkdir(parents=True, exist_ok=True)
        models: dict[str, Path] = {}
        makers = _makers(record, parts)
        watcher.start("NPU graphs", len(makers), "graphs")
        for name, make in makers.items():
            models[name] = folder / f"{name}.onnx"
            models[name].write_bytes(make())
            watcher.advance(1)
        if stand_in:
            for name, path in models.items():
                yield Binary(name, STAND_IN, "", _include(path, writer))
        for soc in socs:
            # Whole layers come twice: the emulation does not load what shares weights.
            for shared in (False, True) if record.form == "layers" else (False,):
                yield from _compile(record, models, soc, writer, watcher, shared=shared)


def _makers(record: NpuRecord, parts: Parts) -> dict[str, Callable[[], bytes]]:
    """What makes each graph's ONNX model, by name."""
    graph, activations, tensors = parts.graph, record.by_value(), parts.of_graphs()
    if record.form == "layers":
        layers = make_layers(graph, record.rows, record.positions)
        return {n: partial(lower_layer, layer, activations, tensors) for n, layer in layers.items()}
    widths = {name: shape[1] for name, shape in graph.shapes().items()}
    return {
        piece.name: partial(lower.lower, piece, record.rows, widths, activations, tensors)
        for piece in record.pieces(graph)
    }


def _compile(
    record: NpuRecord,
    models: Mapping[str, Path],
    soc: Soc,
    writer: BundleWriter,
    watcher: Watcher,
    *,
    shared: bool,
) -> Iterator[Binary]:
    kind = "shared weights" if shared else "graphs"
    watcher.start(f"compiling for {soc.name}", len(models), kind)
    out = writer.partial / "npu" / soc.target.arch / (f"{soc.name}-shared" if shared else soc.name)
    made = compile_graphs(
        models,
        soc,
        out,
        lambda _: watcher.advance(1),
        block_weights=record.weight_bits == 4,
        shared=shared,
    )
    for name, (path, context) in made.items():
        files = _include(path, writer), _include(context, writer)
        yield Binary(name, soc.target, soc.name, *files, shared=shared)


def _include(path: Path, writer: BundleWriter) -> str:
    name = path.relative_to(writer.partial).as_posix()
    writer.include(name)
    return name
