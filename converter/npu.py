"""The NPU program of a bundle: calibrate, cut, lower, compile, and what the manifest says of it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.calibrate import FloatTensors, Tensors
from converter.models.builder import Model
from converter.ranges import Choices, Ranges, find_ranges
from converter.samples import Samples, Wanted, choose_samples
from converter.watch import Watcher
from converter.weights import Weights
from edge.bundle_writer import BundleWriter
from edge.errors import UnknownTarget, UsageError
from edge.graph import Graph
from edge.npu import CHUNKS, Activation, Binary, Calibration, Mode, NpuRecord
from edge.pieces import Piece, static_pieces
from edge.planes import Part
from edge.target import Target
from edge.tensorfile import TensorFileWriter
from npu.htp.compile import compile_pieces
from npu.htp.lower import lower
from npu.htp.provider import load_qnn, versions
from npu.htp.socs import Soc, find_soc

Floats = NDArray[np.float32]

STAND_IN = Target("npu", "ort")

SHADOW = "npu/shadow.safetensors"

# A quarter of what weights are calibrated on finds the same ranges.
WANTED = Wanted(count=2048, length=256)


@dataclass(frozen=True)
class NpuPlan:
    """What to make for NPUs. `socs` are compiled for; `stand_in` keeps the graphs for `npu:ort`."""

    socs: tuple[Soc, ...]
    stand_in: bool
    rows: int
    choices: Choices
    text: Path | None = None

    @property
    def weight_bits(self) -> int:
        return 4 if self.choices.mode == "w4a16" else 8


def plan_npu(
    names: Sequence[str],
    rows: int,
    *,
    mode: Mode = "w8a8",
    pruned: float = 0.0,
    smoothing: float = 0.0,
    text: Path | None = None,
) -> NpuPlan | None:
    """The plan for SoCs and targets by name; None for no names.

    Raises UnknownTarget for a name, UsageError for a chunk length or a share out of range or where
    there is no NPU that they are for, and MissingDependency without what compiling needs.
    """
    if not names:
        if (mode, pruned, smoothing) != ("w8a8", 0.0, 0.0):
            raise UsageError("options of NPU prefill, and no NPU", "add --npu SM8650")
        return None
    if text is not None and not text.is_file():
        raise UsageError(f"calibration text {text}: no such file", "give a UTF-8 text file")
    if rows not in CHUNKS:
        raise UsageError(f"--chunk {rows}", f"for NPUs, use one of {CHUNKS}")
    for option, share in (("--prune-outliers", pruned), ("--smooth", smoothing)):
        if not 0 <= share <= 1:
            raise UsageError(f"{option} {share}", "use a share from 0 to 1")
    socs = tuple(dict.fromkeys(find_soc(name) for name in names if name != str(STAND_IN)))
    if socs:
        load_qnn()
    choices = Choices(mode, pruned, smoothing)
    return NpuPlan(socs, str(STAND_IN) in names, rows, choices, text)


def npu_bytes(plan: NpuPlan | None, graph: Graph) -> int:
    """About what the files of a plan take: the weights once for each SoC, and as graphs."""
    if plan is None:
        return 0
    shapes = {tensor.name: tensor.shape for tensor in graph.tensors}
    linears = [op for piece in static_pieces(graph) for op in piece.linears]
    weights = sum(math.prod(shapes[op.weight]) for op in linears)
    return (1 + len(plan.socs)) * weights * plan.weight_bits // 8


@dataclass(frozen=True)
class _Parts:
    """The graph, its weights in float, and the ranges of its values."""

    graph: Graph
    tensors: Tensors
    ranges: Ranges

    def weights(self, piece: Piece) -> Callable[[str], Floats]:
        """A piece's tensors by name, with the factors of what they read and make in them."""
        ops = {op.weight: op for op in piece.linears}
        factors = self.ranges.factors

        def read(name: str) -> Floats:
            values = self.tensors.dense(name)
            if (op := ops.get(name)) is None:
                return values
            values = values * factors[op.x] if op.x in factors else values
            return values / factors[op.out][:, None] if op.out in factors else values

        return read


@dataclass(frozen=True)
class Origins:
    """What is converted: a model, its weights, and its tokenizer's first token and file."""

    model: Model
    weights: Weights
    start: int | None
    tokenizer: bytes | None


def build_npu(plan: NpuPlan, origins: Origins, writer: BundleWriter, watcher: Watcher) -> NpuRecord:
    """Make a bundle's NPU program, its files written into the bundle's folder."""
    graph, tensors = origins.model.graph, FloatTensors(origins.weights)
    samples = _samples(plan, origins, watcher)
    ranges = find_ranges(graph, tensors, samples.sequences, plan.choices, watcher)
    parts = _Parts(graph, tensors, ranges)
    shadow = _write_shadow(parts, writer)
    binaries = tuple(_build(plan, parts, writer, watcher))
    calibration = Calibration(
        text=samples.origin,
        tokens=samples.count,
        pruned=plan.choices.pruned,
        smoothing=plan.choices.smoothing,
        layer_importance=ranges.layer_importance,
    )
    return NpuRecord(
        mode=plan.choices.mode,
        rows=plan.rows,
        float_gates=ranges.float_gates,
        activations=ranges.activations,
        calibration=calibration,
        binaries=binaries,
        tools=versions(),
        shadow=shadow,
    )


def _samples(plan: NpuPlan, origins: Origins, watcher: Watcher) -> Samples:
    """Sequences to calibrate on: as for weights, or random tokens where there are no others."""
    watcher.start("samples", WANTED.count, "tokens")
    if origins.tokenizer is not None or (plan.text is None and origins.start is not None):
        return choose_samples(
            origins.model, origins.weights, origins.start, origins.tokenizer, plan.text, WANTED
        )
    watcher.note("note: no tokenizer: the NPU's ranges are calibrated on random tokens")
    graph = origins.model.graph
    shape = 4, min(WANTED.length, graph.context)
    drawn = np.random.default_rng(0).integers(0, graph.vocabulary, shape, np.int32)
    return Samples(tuple(drawn), "random tokens")


def _write_shadow(parts: _Parts, writer: BundleWriter) -> str | None:
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


def _build(
    plan: NpuPlan, parts: _Parts, writer: BundleWriter, watcher: Watcher
) -> Iterator[Binary]:
    """Lower every piece, and compile it for every SoC."""
    pieces = static_pieces(parts.graph, parts.ranges.float_gates)
    with tempfile.TemporaryDirectory(dir=writer.partial) as work:
        folder = writer.partial / "npu" / "ort" if plan.stand_in else Path(work)
        models = dict(_lower_all(plan, parts, pieces, folder, watcher))
        if plan.stand_in:
            for name, path in models.items():
                yield Binary(name, STAND_IN, "", _include(path, writer))
        for soc in plan.socs:
            watcher.start(f"compiling for {soc.name}", len(models), "graphs")
            out = writer.partial / "npu" / soc.target.arch / soc.name
            blocks = plan.weight_bits == 4
            made = compile_pieces(
                models, soc, out, lambda _: watcher.advance(1), block_weights=blocks
            )
            for name, (path, context) in made.items():
                files = _include(path, writer), _include(context, writer)
                yield Binary(name, soc.target, soc.name, *files)


def _lower_all(
    plan: NpuPlan, parts: _Parts, pieces: Sequence[Piece], folder: Path, watcher: Watcher
) -> Iterator[tuple[str, Path]]:
    folder.mkdir(parents=True, exist_ok=True)
    widths = {name: shape[1] for name, shape in parts.graph.shapes().items()}
    activations: dict[str, Activation] = {a.value: a for a in parts.ranges.activations}
    watcher.start("NPU graphs", len(pieces), "graphs")
    for piece in pieces:
        path = folder / f"{piece.name}.onnx"
        weights = parts.weights(piece)
        path.write_bytes(lower(piece, plan.rows, widths, activations, weights, plan.weight_bits))
        watcher.advance(1)
        yield piece.name, path


def _include(path: Path, writer: BundleWriter) -> str:
    name = path.relative_to(writer.partial).as_posix()
    writer.include(name)
    return name


def parse_names(texts: Sequence[str]) -> list[str]:
    """SoC names and targets of repeated options, each with commas. Raises UnknownTarget."""
    names = [name for text in texts for name in text.split(",")]
    if "" in names:
        raise UnknownTarget(f"--npu {','.join(texts)!r}: an empty name", "use SM8650,SM8550")
    return names
