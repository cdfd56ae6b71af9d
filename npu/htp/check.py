"""A bundle's NPU graphs on Qualcomm's emulation, one by one, each beside its plain twin.

The twin is the graph before it was compiled, on ONNX Runtime's CPU provider, which computes in
float between the same roundings.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edge.bundle import Bundle
from edge.check import Check, compare
from edge.errors import NpuUnavailable
from edge.npu import Codes
from edge.target import Target
from npu.htp.backend import sessions
from npu.htp.graphs import Ends, graph_ends
from npu.htp.layer import MASK, SEEN, UNSEEN
from npu.htp.nodes import End
from npu.htp.placed import STAND_IN

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
    return sum(len(ends.outputs) for ends in _ends(bundle).values())


def check(bundle: Bundle, target: Target) -> Iterator[Check]:
    """Run every graph on random codes; yields a check for each of its outputs.

    Raises MissingDependency without Qualcomm's emulation, and what `backend.sessions` does.
    """
    record = bundle.manifest.npu
    assert record is not None  # `targets` found one
    compiled, plain = sessions(bundle, target), sessions(bundle, STAND_IN)
    rng = np.random.default_rng(0)
    weights = {op.out: op.weights() for op in bundle.graph.ops()}
    for graph, ends in _ends(bundle).items():
        given = {end.name: _codes(end, rng) for end in ends.inputs}
        names = [end.name for end in ends.outputs]
        made, want = (by[graph].run(names, given) for by in (compiled, plain))
        for end, a, b in zip(ends.outputs, made, want, strict=True):
            subject = (weights.get(end.name) or [end.name])[0]
            values = end.activation.decode(a), end.activation.decode(b)
            yield compare(f"{target} {graph}", subject, *values, _MOST[record.mode])


def _ends(bundle: Bundle) -> dict[str, Ends]:
    record = bundle.manifest.npu
    assert record is not None  # `targets` found one
    return graph_ends(bundle.graph, record)


def _codes(end: End, rng: np.random.Generator) -> Codes:
    """Random values within an input's range, as the NPU is given them; a mask hides half."""
    activation = end.activation
    if end.name == MASK:
        return np.where(rng.integers(0, 2, end.shape), SEEN, UNSEEN)
    spread = max(abs(activation.least), abs(activation.most)) / 3
    values = rng.normal(scale=spread, size=end.shape).astype(np.float32)
    return activation.encode(np.clip(values, activation.least, activation.most))
