"""The NPU program of a bundle: calibrate, cut, lower, compile, and what the manifest says of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from converter.calibrate import FloatTensors
from converter.calibrated import Method
from converter.layer_ranges import find_layer_ranges
from converter.models.builder import Model
from converter.npu_graphs import STAND_IN, Parts, build_graphs, write_shadow
from converter.npu_weights import calibrated_weights
from converter.ranges import Choices, Ranges, find_ranges
from converter.samples import Samples, Wanted, choose_samples
from converter.weights import Weights
from edge.bundle_writer import BundleWriter
from edge.errors import UnknownTarget, UnsupportedMath, UsageError
from edge.graph import Graph
from edge.npu import CHUNKS, Calibration, Form, Mode, NpuRecord
from edge.pieces import static_pieces
from edge.watch import Watcher
from npu.htp.lower_layer import refuses
from npu.htp.provider import load_qnn, versions
from npu.htp.socs import Soc, find_soc
from npu.htp.weights import Weights as NpuWeights

# A quarter of what weights are calibrated on finds the same ranges.
WANTED = Wanted(count=2048, length=256)

# The first HTP that multiplies queries by keys in 16 bits.
LAYERS_VERSION = 73

# Places for keys and values in graphs of whole layers, where the context is longer.
POSITIONS = 1024


@dataclass(frozen=True)
class NpuPlan:
    """What to make for NPUs. `socs` are compiled for; `stand_in` keeps the graphs for `npu:ort`.

    Whole layers take up to `positions` tokens.
    """

    socs: tuple[Soc, ...]
    stand_in: bool
    rows: int
    choices: Choices
    text: Path | None = None
    form: Form = "pieces"
    positions: int = POSITIONS

    @property
    def weight_bits(self) -> int:
        return 4 if self.choices.mode == "w4a16" else 8

    def check(self, graph: Graph, method: Method | None) -> None:
        """Raises UnsupportedMath or UsageError for what cannot be made of a graph."""
        if self.form == "layers" and (reason := refuses(graph)):
            raise UnsupportedMath(f"--npu-form layers: {reason}", "use --npu-form pieces")
        if method is not None and self.choices.smoothing:
            what = "--smooth changes the weights that --quality finds codes for"
            raise UsageError(what, "leave it out, or use --quality fast")


def plan_npu(
    names: Sequence[str],
    rows: int,
    *,
    mode: Mode | None = None,
    pruned: float = 0.0,
    smoothing: float = 0.0,
    text: Path | None = None,
    form: Form = "pieces",
    positions: int = POSITIONS,
) -> NpuPlan | None:
    """The plan for SoCs and targets by name; None for no names.

    `mode` None is w8a8, and w4a16 for whole layers. Raises UnknownTarget for a name, UsageError for
    a chunk length or a share out of range, for what does not go together or where there is no NPU
    that it is for, and MissingDependency without what compiling needs.
    """
    if not names:
        if (mode, pruned, smoothing, form, positions) != (None, 0.0, 0.0, "pieces", POSITIONS):
            raise UsageError("options of NPU programs, and no NPU", "add --npu SM8650")
        return None
    if text is not None and not text.is_file():
        raise UsageError(f"calibration text {text}: no such file", "give a UTF-8 text file")
    if rows not in CHUNKS:
        raise UsageError(f"--chunk {rows}", f"for NPUs, use one of {CHUNKS}")
    for option, share in (("--prune-outliers", pruned), ("--smooth", smoothing)):
        if not 0 <= share <= 1:
            raise UsageError(f"{option} {share}", "use a share from 0 to 1")
    choices = Choices(mode or ("w8a8" if form == "pieces" else "w4a16"), pruned, smoothing)
    socs = tuple(dict.fromkeys(find_soc(name) for name in names if name != str(STAND_IN)))
    if form == "layers":
        _check_layers(choices, positions, socs)
    if socs:
        load_qnn()
    return NpuPlan(socs, str(STAND_IN) in names, rows, choices, text, form, positions)


def npu_bytes(plan: NpuPlan | None, graph: Graph) -> int:
    """About what the files of a plan take: the weights once for each SoC, and as graphs.

    Whole layers have them twice in graphs, and three times for each SoC: in the binary that shares
    them, and in those for the emulation.
    """
    if plan is None:
        return 0
    shapes = {tensor.name: tensor.shape for tensor in graph.tensors}
    linears = [op for piece in static_pieces(graph) for op in piece.linears]
    weights = sum(math.prod(shapes[op.weight]) for op in linears)
    whole = plan.form == "layers"
    copies = (2 if whole else 1) + (3 if whole else 1) * len(plan.socs)
    return copies * weights * plan.weight_bits // 8


def _check_layers(choices: Choices, positions: int, socs: Sequence[Soc]) -> None:
    """Whole layers have nothing beside them that could restore outliers, so 16 bits hold them."""
    for soc in socs:
        if soc.version < LAYERS_VERSION:
            what = f"{soc.name}: HTP v{soc.version} multiplies no two activations of 16 bits"
            cure = f"use --npu-form pieces, or SoCs from HTP v{LAYERS_VERSION} on"
            raise UsageError(f"--npu-form layers for {what}", cure)
    if choices.mode == "w8a8":
        cure = "use --npu-mode w4a16 or w8a16, or --npu-form pieces"
        raise UsageError("--npu-form layers with activations of 8 bits", cure)
    if choices.pruned or choices.smoothing:
        what = "--prune-outliers and --smooth are for pieces; whole layers hold outliers"
        raise UsageError(what, "leave them out, or use --npu-form pieces")
    if positions < 1:
        raise UsageError(f"--npu-positions {positions}", "use 1 or more")


@dataclass(frozen=True)
class Origins:
    """What is converted: a model, its weights, and its tokenizer's first token and file."""

    model: Model
    weights: Weights
    start: int | None
    tokenizer: bytes | None


def build_npu(
    plan: NpuPlan,
    origins: Origins,
    writer: BundleWriter,
    watcher: Watcher,
    method: Method | None = None,
) -> NpuRecord:
    """Make a bundle's NPU program, its files written into the bundle's folder.

    `method` finds the weights by calibration; None rounds them to nearest.
    """
    graph, tensors = origins.model.graph, FloatTensors(origins.weights)
    plan = replace(plan, positions=min(plan.positions, graph.context))
    samples = _samples(plan, origins, watcher, WANTED)
    if plan.form == "layers":
        found = find_layer_ranges(graph, tensors, samples.sequences, watcher)
        ranges = Ranges(found, (), (), {})
    else:
        ranges = find_ranges(graph, tensors, samples.sequences, plan.choices, watcher)
    weights = None if method is None else _weights(plan, origins, method, watcher)
    parts = Parts(graph, tensors, ranges, plan.weight_bits, weights)
    calibration = Calibration(
        text=samples.origin,
        tokens=samples.count,
        pruned=plan.choices.pruned,
        smoothing=plan.choices.smoothing,
        layer_importance=ranges.layer_importance,
        gptq=method is not None,
    )
    record = NpuRecord(
        mode=plan.choices.mode,
        rows=plan.rows,
        float_gates=ranges.float_gates,
        activations=ranges.activations,
        calibration=calibration,
        binaries=(),
        tools=versions(),
        shadow=write_shadow(parts, writer),
        form=plan.form,
        positions=plan.positions if plan.form == "layers" else 0,
    )
    binaries = build_graphs(record, parts, plan.socs, writer, watcher, stand_in=plan.stand_in)
    return replace(record, binaries=tuple(binaries))


def _weights(
    plan: NpuPlan, origins: Origins, method: Method, watcher: Watcher
) -> dict[str, NpuWeights]:
    samples = _samples(plan, origins, watcher, method.samples)
    graph, bits = origins.model.graph, plan.weight_bits
    return calibrated_weights(graph, origins.weights, bits, samples, method, watcher)


def _samples(plan: NpuPlan, origins: Origins, watcher: Watcher, wanted: Wanted) -> Samples:
    """Sequences to calibrate on: as for weights, or random tokens where there are no others."""
    watcher.start("samples", wanted.count, "tokens")
    if origins.tokenizer is not None or (plan.text is None and origins.start is not None):
        return choose_samples(
            origins.model, origins.weights, origins.start, origins.tokenizer, plan.text, wanted
        )
    watcher.note("note: no tokenizer: the NPU's ranges are calibrated on random tokens")
    graph: Graph = origins.model.graph
    shape = 4, min(wanted.length, graph.context)
    drawn = np.random.default_rng(0).integers(0, graph.vocabulary, shape, np.int32)
    return Samples(tuple(drawn), "random tokens")


def parse_names(texts: Sequence[str]) -> list[str]:
    """SoC names and targets of repeated options, each with commas. Raises UnknownTarget."""
    names = [name for text in texts for name in text.split(",")]
    if "" in names:
        raise UnknownTarget(f"--npu {','.join(texts)!r}: an empty name", "use SM8650,SM8550")
    return names
