"""Calibrated quantization of a model: layer after layer, each seeing what those before it made.

Samples go through the model twice at once, exact and quantized. At every linear projection the two
inputs say what its weights should be, which is not what they are: part of the error that earlier
layers made can be taken back here (`_aim`). Then `quantize.gptq` finds the codes, they are written,
and the quantized walk goes on with what was written. So an interrupted conversion goes on with the
first tensor that is not on the disk, and gets there with the same inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from converter.calibrate import FloatTensors, Walk
from converter.plan import PlannedTensor
from converter.quantize.gptq import Curvature, Effort, Matrix, Snap, quantize
from converter.quantize.grid import Floats, Grid, fit_threshold
from converter.quantize.rtn import quantize_rows
from converter.refine import Refinement
from converter.samples import WANTED, Samples, Wanted
from converter.weights import Weights
from edge.formats import Format
from edge.graph import Add, Embed, Graph, Linear
from edge.planes import TILE, Quantized, StoredTensor, dequantize, pack
from edge.reference import Values
from edge.watch import Watcher

# Tokens for each input before half of the correction is believed.
PRIOR = 12

# Weights that come back from round to nearest this close are codes already (a ternary model's).
_EXACT = 1e-6


@dataclass(frozen=True)
class Method:
    """How to quantize by calibration.

    `correction` is the share of the earlier layers' error that each layer makes up for, given many
    samples; with `tokens` of them for inputs of a width it is tokens / (tokens + PRIOR * width) of
    that. All of it would fit the samples too closely. (stories260k at w2g32, KL at shares of 0,
    0.25, 0.5 and 0.75: 1.65, 1.14, 1.04 and 1.03 with 8192 tokens, 2.31, 2.30, 2.49 and 2.87 with
    256.)

    `scaled` folds activation-aware scales in first (`converter.scaling`); `refinement` learns on
    from the codes that are found, in models that draw their own samples (`converter.refine`).
    """

    effort: Effort = field(default_factory=Effort)
    correction: float = 0.8
    samples: Wanted = WANTED
    scaled: bool = False
    refinement: Refinement | None = None


class Output(Protocol):
    """Where tensors are written, and read back from."""

    def finished(self, name: str) -> bool:
        """Whether a tensor is whole on the disk."""
        ...

    def plain(self, name: str) -> None:
        """Encode a tensor without calibration, if it is not finished."""
        ...

    def write(self, name: str, arrays: Mapping[str, NDArray[Any]], first: int) -> None:
        """Write packed arrays of a tensor from index `first` of their leading dimension on."""
        ...

    def done(self, name: str, rms: float) -> None:
        """A tensor is whole, with this relative RMS error of its weights."""
        ...

    def read(self, name: str) -> StoredTensor:
        """A finished tensor."""
        ...


@dataclass(frozen=True)
class Task:
    """What is to be quantized: the tensors `planned` by calibration, all others without.

    `snap` is given where not all grids can be stored; see `quantize.gptq.quantize`.
    """

    graph: Graph
    weights: Weights
    planned: Mapping[str, PlannedTensor]
    samples: Samples
    method: Method
    snap: Snap | None = None


def encode_calibrated(task: Task, output: Output, watcher: Watcher) -> None:
    """Quantize and write `task.planned`, and on the way whatever the walk reads.

    Raises MissingDependency without Numba, BadWeights for weights that a format does not reach.
    """
    head = head_of(task.graph)
    worker = _Worker(task, output, watcher)
    if is_embedding(task.graph, head.weight) and worker.due(head.weight):
        worker.encode_tied(head)
    exact = Walk(task.graph, FloatTensors(task.weights), task.samples.sequences)
    made = Walk(task.graph, _Written(output), task.samples.sequences)
    for op, _ in zip(exact, made, strict=True):
        if isinstance(op, Linear) and worker.due(op.weight):
            worker.encode(op, exact, made)
        if op == head:  # logits of all samples would take too much memory, and nobody needs them
            break
    worker.report()


def head_of(graph: Graph) -> Linear:
    """The op that makes the logits, before a soft cap."""
    return [op for op in graph.subgraphs[-1].ops if isinstance(op, Linear)][-1]


def is_embedding(graph: Graph, name: str) -> bool:
    """Whether rows of a tensor are looked up."""
    return any(isinstance(op, Embed) and op.table == name for op in graph.ops())


class _Written:
    """Tensors as they are on the disk; what is not there yet is put there first."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def dense(self, name: str) -> Values:
        return self.stored(name).dequantized()

    def stored(self, name: str) -> StoredTensor:
        self._output.plain(name)
        return self._output.read(name)


@dataclass(frozen=True)
class _Inputs:
    """What a projection's inputs say: their curvature, and how the exact inputs follow from them.

    `drift` [width, width] is such that x_exact - x is nearest to x @ drift^T, and `solved` the
    inverse of the curvature; both are scaled by the share of the correction. None without one.
    """

    curvature: Curvature
    drift: NDArray[Any] | None
    solved: NDArray[Any] | None


class _Worker:
    """Quantizes one projection after another."""

    def __init__(self, task: Task, output: Output, watcher: Watcher) -> None:
        self._task = task
        self._output = output
        self._watcher = watcher
        self._readers = {name: op for op in task.graph.ops() for name in op.inputs()}
        self._inputs: tuple[str, _Inputs] | None = None
        self._errors: dict[str, float] = {}
        self._layer = ""

    def due(self, name: str) -> bool:
        return name in self._task.planned and not self._output.finished(name)

    def encode_tied(self, head: Linear) -> None:
        """Quantize an embedding that is also the head, for the inputs that the exact head has."""
        walk = Walk(
            self._task.graph, FloatTensors(self._task.weights), self._task.samples.sequences
        )
        for op in walk:
            if op == head:
                curvature = Curvature(_product(walk, walk, op.x), self._task.method.effort)
                self._quantize(head.weight, _Inputs(curvature, None, None), None)
                return

    def encode(self, op: Linear, exact: Walk, made: Walk) -> None:
        """Quantize a projection whose inputs both walks have."""
        if self._inputs is None or self._inputs[0] != op.x:
            self._inputs = op.x, self._look(op.x, exact, made)
        inputs = self._inputs[1]
        self._quantize(op.weight, inputs, self._residual(op, inputs, exact, made))

    def report(self) -> None:
        """Tell the errors of the layer that is done."""
        if self._errors:
            parts = (f"{name} {100 * error:.2g} %" for name, error in self._errors.items())
            self._watcher.note(f"{self._layer}: output error {', '.join(parts)}")
        self._errors = {}

    def _look(self, name: str, exact: Walk, made: Walk) -> _Inputs:
        method = self._task.method
        own = _product(made, made, name)
        curvature = Curvature(own, method.effort)
        if not method.correction:
            return _Inputs(curvature, None, None)
        tokens = self._task.samples.count
        share = method.correction * tokens / (tokens + PRIOR * len(own))
        solved = share * np.linalg.inv(curvature.damped)
        drift = (_product(exact, made, name) - own) @ solved
        return _Inputs(curvature, drift, solved)

    def _residual(
        self, op: Linear, inputs: _Inputs, exact: Walk, made: Walk
    ) -> NDArray[np.float32] | None:
        """What to add to weights that write to the residual stream, to take back its error."""
        reader = self._readers.get(op.out)
        if inputs.solved is None or not isinstance(reader, Add):
            return None
        stream = reader.a if reader.b == op.out else reader.b
        lost = _mean_product(
            [e - m for e, m in zip(exact.parts(stream), made.parts(stream), strict=True)],
            made.parts(op.x),
        )
        return np.asarray(lost @ inputs.solved, np.float32)

    def _quantize(self, name: str, inputs: _Inputs, residual: NDArray[np.float32] | None) -> None:
        """Find a tensor's codes block by block, and write them."""
        form, sums = self._task.planned[name].form, _Sums()
        scale = self._tensor_scale(name, form)
        for first, rows in self._task.weights.blocks(name):
            aim = _aim(
                rows, inputs, None if residual is None else residual[first : first + len(rows)]
            )
            quantized = _encode(form, rows, aim, inputs.curvature, scale, self._task.snap)
            arrays = pack(form, quantized)
            if form.granularity == "tensor":
                self._output.write(name, {"scales": arrays.pop("scales")}, 0)
            self._output.write(name, arrays, first // TILE)
            sums.add(rows, aim, dequantize(form, quantized), inputs.curvature)
            self._watcher.advance(rows.size)
        self._output.done(name, sums.weight_error)
        self._remember(name, sums.output_error)

    def _tensor_scale(self, name: str, form: Format) -> float | None:
        if form.granularity != "tensor":
            return None
        return fit_threshold(rows for _, rows in self._task.weights.blocks(name))

    def _remember(self, name: str, error: float) -> None:
        layer, _, short = name.rpartition(".")
        if layer != self._layer:
            self.report()
        self._layer = layer or name
        self._errors[short] = error


def _aim(rows: Floats, inputs: _Inputs, residual: Floats | None) -> Floats:
    """The weights that make, of the inputs as they have become, what the exact ones made.

    min |x W'^T - x_exact W^T| over the samples has the solution W + W drift; where the output goes
    to the residual stream, what is missing there is added.
    """
    aim = rows
    if inputs.drift is not None:
        aim = aim + (rows @ inputs.drift).astype(np.float32)
    return aim if residual is None else aim + residual


def _encode(
    form: Format,
    rows: Floats,
    aim: Floats,
    curvature: Curvature,
    scale: float | None,
    snap: Snap | None,
) -> Quantized:
    plain = quantize_rows(form, rows, scale)
    near = _EXACT * float(np.abs(rows).max())
    if snap is None and np.allclose(dequantize(form, plain), rows, rtol=0, atol=near):
        return plain
    grid = None
    if scale is not None:
        shape = (len(rows), 1)
        grid = Grid(form, np.full(shape, scale, np.float32), np.ones(shape, np.float32))
    grid, codes = quantize(form, aim, curvature, grid, snap=snap)
    return grid.quantized(codes)


class _Sums:
    """Errors of a tensor, added up over its blocks."""

    def __init__(self) -> None:
        self._weight = [0.0, 0.0]
        self._output = [0.0, 0.0]

    def add(self, rows: Floats, aim: Floats, made: Floats, curvature: Curvature) -> None:
        for sums, error, whole in (
            (self._weight, _power(made - rows), _power(rows)),
            (self._output, curvature.error(made, aim), curvature.error(aim, np.zeros_like(aim))),
        ):
            sums[0] += error
            sums[1] += whole

    @property
    def weight_error(self) -> float:
        """Relative RMS error of the weights."""
        return _root(*self._weight)

    @property
    def output_error(self) -> float:
        """Relative RMS error of the output, against what was aimed at."""
        return _root(*self._output)


def _power(values: Floats) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _root(error: float, whole: float) -> float:
    return math.sqrt(error / whole) if whole else 0.0


def _product(left: Walk, right: Walk, name: str) -> Matrix:
    """Mean of left^T right over all tokens, [width, width]."""
    return _mean_product(left.parts(name), right.parts(name))


def _mean_product(left: list[Values], right: list[Values]) -> Matrix:
    total = sum(_wide(a.T @ b) for a, b in zip(left, right, strict=True))
    return np.asarray(total) / sum(len(part) for part in left)


def _wide(values: Values) -> Matrix:
    """A product in float32, to be added up in float64."""
    return values.astype(np.float64)
