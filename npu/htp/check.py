"""A bundle's NPU graphs on Qualcomm's emulation, piece by piece, each beside its plain twin.

The twin is the graph before it was compiled, on ONNX Runtime's CPU provider, which computes in
float between the same roundings.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edge.bundle import Bundle
from edge.check import Check, compare
from edge.errors import NpuUnavailable
from edge.npu import Activation, Codes, NpuRecord
from edge.target import Target
from npu.htp.backend import STAND_IN, sessions
from npu.htp.lower import padded_width

# Of an output's norm, twice to ten times what tiny models have (emulated: 5e-3, 6e-5, 3e-2): the
# HTP rounds inside of its ops where the twin computes in float, and more with scales of blocks.
_MOST = {"w8a8": 0.02, "w8a16": 6e-4, "w4a16": 0.06}


def targets(bundle: Bundle) -> list[Target]:
    """Those that the bundle has compiled graphs for. Raises NpuUnavailable where it has no twin."""
    record = bundle.manifest.npu
    binaries = () if record is None else record.binaries
    found = {str(b.target): b.target for b in binaries if b.target != STAND_IN}
    if not found or all(binary.target != STAND_IN for binary in binaries):
        missing = "graphs as they were before compiling" if found else "compiled NPU program"
        raise NpuUnavailable(
            f"{bundle.folder} has no {missing}, which --on htp compares",
            "convert again with --npu SM8650,npu:ort",
        )
    return list(found.values())


def output_count(bundle: Bundle) -> int:
    """How many checks `check` makes."""
    record = bundle.manifest.npu
    assert record is not None  # `targets` found one
    return sum(len(piece.outputs) for piece in record.pieces(bundle.graph))


def check(bundle: Bundle, target: Target) -> Iterator[Check]:
    """Run every piece on random codes; yields a check for each of its outputs.

    Raises MissingDependency without Qualcomm's emulation, and what `backend.sessions` does.
    """
    record = bundle.manifest.npu
    assert record is not None  # `targets` found one
    compiled, plain = sessions(bundle, target), sessions(bundle, STAND_IN)
    activations, rng = record.by_value(), np.random.default_rng(0)
    widths = {name: shape[1] for name, shape in bundle.graph.shapes().items()}
    for piece in record.pieces(bundle.graph):
        given = {
            name: _codes(activations[name], record, widths[name], rng) for name in piece.inputs
        }
        outputs = list(piece.outputs)
        made, want = (by[piece.name].run(outputs, given) for by in (compiled, plain))
        weights = {op.out: op.weights() for op in piece.ops}
        for name, a, b in zip(outputs, made, want, strict=True):
            subject = weights[name][0] if weights[name] else name
            values = activations[name].decode(a), activations[name].decode(b)
            yield compare(f"{target} {piece.name}", subject, *values, _MOST[record.mode])


def _codes(
    activation: Activation, record: NpuRecord, width: int, rng: np.random.Generator
) -> Codes:
    """Random values within an activation's range, as the NPU is given them, [rows, padded]."""
    spread = max(abs(activation.least), abs(activation.most)) / 3
    values = rng.normal(scale=spread, size=(record.rows, width)).astype(np.float32)
    codes = activation.encode(np.clip(values, activation.least, activation.most))
    pad = (0, 0), (0, padded_width(width, record.weight_bits) - width)
    return np.pad(codes, pad, constant_values=activation.zero)
