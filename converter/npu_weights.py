"""The NPU's own copy of weights by calibration: the same quantizers as decode's, on its grids.

At 4 bits the HTP takes scales of blocks that are whole multiples of their channel's. All of them
are float16 numbers, so that they fit the format w4g32, and what is quantized for it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from converter.calibrate import FloatTensors
from converter.calibrated import Method, Task, encode_calibrated
from converter.plan import PlannedTensor
from converter.quantize.grid import Floats, Grid
from converter.samples import Samples
from converter.weights import Weights
from edge.formats import Format
from edge.graph import Graph, Linear
from edge.planes import StoredTensor, parts_of
from edge.watch import Watcher
from npu.htp import weights as npu

FORMS = {4: Format.parse(f"w4g{npu.BLOCK}"), 8: Format.parse("w8gc")}

# Bits of a channel's scale: times a number of steps, it is a float16 still.
_SCALE_BITS = 7


def calibrated_weights(
    graph: Graph, weights: Weights, bits: int, samples: Samples, method: Method, watcher: Watcher
) -> dict[str, npu.Weights]:
    """Quantize all projections of layers as `--quality good` does, at 4 or 8 bits.

    Raises MissingDependency without Numba, BadWeights for weights that 4 bits do not reach.
    """
    names = {
        op.weight
        for subgraph in graph.subgraphs
        for op in subgraph.ops
        if isinstance(op, Linear) and subgraph.layer is not None
    }
    form = FORMS[bits]
    planned = {name: PlannedTensor(graph.tensor(name), form) for name in sorted(names)}
    kept = _Kept(planned, weights)
    watcher.start("NPU weights", sum(p.weight_count for p in planned.values()), "weights")
    task = Task(graph, weights, planned, samples, method, snap_blocks if bits == 4 else None)
    encode_calibrated(task, kept, watcher)
    return {name: _of_npu(kept.read(name)) for name in planned}


def snap_blocks(grid: Grid) -> Grid:
    """The nearest grid whose scales are 1 to 16 times their row's."""
    scales = np.abs(grid.scales)
    row = _narrow(scales.max(axis=1, keepdims=True) / npu.MOST_STEPS)
    steps = np.clip(np.rint(scales / np.where(row > 0, row, 1)), 1, npu.MOST_STEPS)
    return Grid(grid.form, (steps * row).astype(np.float32), grid.zeros)


def _narrow(values: Floats) -> Floats:
    """Numbers rounded to few enough bits that 16 times them are float16 numbers."""
    mantissas, exponents = np.frexp(values)
    rounded = np.ldexp(np.rint(np.ldexp(mantissas, _SCALE_BITS)), exponents - _SCALE_BITS)
    made: Floats = rounded.astype(np.float16).astype(np.float32)
    return made


def _of_npu(stored: StoredTensor) -> npu.Weights:
    """A tensor in one of FORMS as the NPU's graphs have it."""
    quantized, form = stored.quantized(), stored.form
    codes = (quantized.codes.astype(np.int16) - form.zero).astype(np.int8)
    scales = quantized.scales.T.astype(np.float32)  # [blocks, out]
    if form.bits == 4:
        return npu.Weights(npu.in_blocks(codes).T, scales, 4)
    return npu.Weights(codes.T, scales[0], 8)


class _Kept:
    """Quantized tensors in memory. See `converter.calibrated.Output`."""

    def __init__(self, planned: Mapping[str, PlannedTensor], weights: Weights) -> None:
        self._planned = planned
        self._floats = FloatTensors(weights)
        self._arrays: dict[str, dict[str, NDArray[np.generic]]] = {}
        self._done: set[str] = set()

    def finished(self, name: str) -> bool:
        return name in self._done

    def plain(self, name: str) -> None:
        """All others stay as they are."""

    def write(self, name: str, arrays: Mapping[str, NDArray[np.generic]], first: int) -> None:
        planned = self._planned[name]
        if name not in self._arrays:
            parts = parts_of(planned.form, planned.tensor.shape)
            self._arrays[name] = {key: np.empty(p.shape, p.dtype) for key, p in parts.items()}
        for key, values in arrays.items():
            self._arrays[name][key][first : first + len(values)] = values

    def done(self, name: str, rms: float) -> None:
        del rms
        self._done.add(name)

    def read(self, name: str) -> StoredTensor:
        if name not in self._arrays:
            return self._floats.stored(name)
        planned = self._planned[name]
        return StoredTensor(name, planned.form, planned.tensor.shape, self._arrays[name])
