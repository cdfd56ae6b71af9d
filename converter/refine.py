"""Refinement of a small quantized model by what the float model predicts.

Codes, scales, norms and biases are learned together: the gradient of the KL divergence from the
float model goes through the rounding as if it were not there (straight-through estimation; LLM-QAT,
arXiv 2305.17888, distills the same way on text that the model itself has drawn, EfficientQAT,
2407.11062, learns steps after codes). It starts from calibrated codes, so that little has to move.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converter.backward import Tape
from converter.calibrate import Tensors, Tokens
from converter.quantize import scales as stored
from converter.quantize.grid import Floats, Grid
from converter.samples import Samples
from edge.formats import F32, Format
from edge.graph import Graph
from edge.planes import Quantized, StoredTensor, zeros_of
from edge.reference import Values, softmax
from edge.watch import Watcher

_SEED = 31

# How far from the middle of its code a weight may begin, in steps: the calibrated codes are kept,
# and a weight that was nearly rounded the other way needs little to change its mind.
_CELL = 0.45


@dataclass(frozen=True)
class Refinement:
    """How long to learn, on how many sequences at a time, and how fast at first.

    Rates are a step's most: `code_rate` in steps of the grid, `scale_rate` and `vector_rate` as
    shares of the scale, and of the vector's mean magnitude. All fall to 0 along a cosine. An eighth
    of the samples is kept to judge by.
    """

    steps: int = 160
    batch: int = 8
    code_rate: float = 0.02
    scale_rate: float = 2e-3
    vector_rate: float = 2e-3


@dataclass(frozen=True)
class Draft:
    """A model to refine: the float one's tensors, and the quantized one's as they are stored.

    `learned` are the tensors that may change: quantized matrices and float vectors.
    """

    graph: Graph
    exact: Tensors
    stored: Mapping[str, StoredTensor]
    learned: frozenset[str]


@dataclass(frozen=True)
class Refined:
    """What is to be written, by tensor: codes of matrices, values of vectors.

    `gain` is the share of the KL divergence that is gone; with none, nothing is to be written.
    """

    matrices: Mapping[str, Quantized]
    vectors: Mapping[str, Values]
    gain: float


def refine(draft: Draft, samples: Samples, settings: Refinement, watcher: Watcher) -> Refined:
    """Learn, and return what was learned, if samples kept apart say that something is gained."""
    sequences = _stack(samples)
    held = max(len(sequences) // 8, 1)
    apart, own = sequences[:held], sequences[held:]
    student = _Student(draft)
    before = _divergence(draft, student, apart)
    watcher.start("refinement", settings.steps, "steps")
    for step, batch in enumerate(_batches(own, settings)):
        target = softmax(Tape(draft.graph, draft.exact).forward(batch))
        tape = Tape(draft.graph, student)
        missed = softmax(tape.forward(batch)) - target
        gradients = tape.backward(missed / np.float32(len(missed)))
        student.learn(gradients, settings, (1 + math.cos(math.pi * step / settings.steps)) / 2)
        watcher.advance(1)
    after = _divergence(draft, student, apart)
    watcher.note(f"refinement: KL {before:.4g} before, {after:.4g} after, on samples kept apart")
    return student.result(1 - after / before) if after < before else Refined({}, {}, 0.0)


def _stack(samples: Samples) -> Tokens:
    """The sequences of full length, [sequences, length]."""
    length = max(len(sequence) for sequence in samples.sequences)
    return np.stack([s for s in samples.sequences if len(s) == length])


def _batches(sequences: Tokens, settings: Refinement) -> Iterator[Tokens]:
    """Sequences at random, each taken once before any is taken again."""
    random, queue = np.random.default_rng(_SEED), list[int]()
    for _ in range(settings.steps):
        while len(queue) < settings.batch:
            queue += random.permutation(len(sequences)).tolist()
        taken, queue = queue[: settings.batch], queue[settings.batch :]
        yield sequences[taken]


def _divergence(draft: Draft, student: Tensors, sequences: Tokens) -> float:
    total = 0.0
    for sequence in sequences:
        exact, made = (
            np.log(softmax(Tape(draft.graph, tensors).forward(sequence[None]).astype(np.float64)))
            for tensors in (draft.exact, student)
        )
        total += float((np.exp(exact) * (exact - made)).sum())
    return total / sequences.size


class _Student:
    """The quantized model as it learns. See `converter.calibrate.Tensors`."""

    def __init__(self, draft: Draft) -> None:
        self._fixed = draft.stored
        self._made: dict[str, Values] = {}
        self._parts: dict[str, _Matrix | _Vector] = {}
        for name in draft.learned:
            stored = draft.stored[name]
            if stored.form.quantized:
                self._parts[name] = _Matrix(
                    stored.form, stored.quantized(), draft.exact.dense(name)
                )
            else:
                self._parts[name] = _Vector(stored.dequantized())

    def dense(self, name: str) -> Values:
        if name not in self._made:
            part = self._parts.get(name)
            self._made[name] = self._fixed[name].dequantized() if part is None else part.values()
        return self._made[name]

    def stored(self, name: str) -> StoredTensor:
        values = self.dense(name)
        return StoredTensor(name, F32, values.shape, {"values": values})

    def learn(self, gradients: Mapping[str, Values], settings: Refinement, share: float) -> None:
        """A step against the gradients; `share` of the rates."""
        for name, part in self._parts.items():
            part.learn(gradients[name], settings, share)
            del self._made[name]

    def result(self, gain: float) -> Refined:
        parts = self._parts.items()
        return Refined(
            {name: part.quantized() for name, part in parts if isinstance(part, _Matrix)},
            {name: part.values() for name, part in parts if isinstance(part, _Vector)},
            gain,
        )


class _Matrix:
    """A quantized matrix: where its weights lie between codes, and its scales."""

    def __init__(self, form: Format, quantized: Quantized, exact: Floats) -> None:
        rows, width = exact.shape
        shape = rows, form.group_count(width)
        zeros = form.zero if quantized.zeros is None else zeros_of(form, quantized.zeros)
        self._form, self._shape = form, quantized.scales.shape
        self._first = quantized.scales.astype(np.float32)
        self._zeros = np.broadcast_to(np.asarray(zeros, np.float32), shape).copy()
        self._shift = np.zeros_like(self._first)  # of the scales' logarithms
        grid = self._grid()
        scales, offsets = grid.columns(width)
        middle = quantized.codes - offsets
        steps = exact / np.where(scales == 0, np.float32(np.inf), scales)
        self._places: Floats = np.clip(steps, middle - _CELL, middle + _CELL)
        self._low, self._high = (
            -offsets - np.float32(0.49),
            form.levels - offsets - np.float32(0.51),
        )
        self._code_mean, self._scale_mean = _Adam(), _Adam()

    def _grid(self) -> Grid:
        scales = stored.nearest(self._form, self._first * np.exp(self._shift))
        return Grid(self._form, np.broadcast_to(scales, self._zeros.shape), self._zeros)

    def _codes(self) -> Floats:
        _, zeros = self._grid().columns(self._places.shape[1])
        codes: Floats = np.clip(np.rint(self._places + zeros), 0, self._form.levels - 1)
        return codes

    def values(self) -> Values:
        return self._grid().decode(self._codes())

    def quantized(self) -> Quantized:
        return self._grid().quantized(self._codes())

    def learn(self, gradient: Values, settings: Refinement, share: float) -> None:
        grid, codes = self._grid(), self._codes()
        scales, zeros = grid.columns(codes.shape[1])
        along = gradient * (codes - zeros) * scales  # of the scale's logarithm, by weight
        starts = np.arange(0, codes.shape[1], self._form.group_size(codes.shape[1]))
        by_group = np.add.reduceat(along, starts, axis=1)
        if self._shape == (1, 1):
            by_group = by_group.sum(keepdims=True)
        rate = np.float32(share * settings.code_rate)
        self._places -= rate * self._code_mean.direction(gradient * scales)
        np.clip(self._places, self._low, self._high, out=self._places)
        rate = np.float32(share * settings.scale_rate)
        self._shift -= rate * self._scale_mean.direction(by_group)


class _Vector:
    """A norm's weights or a bias."""

    def __init__(self, values: Values) -> None:
        self._values = values.copy()
        self._size = np.float32(np.abs(values).mean())
        self._mean = _Adam()

    def values(self) -> Values:
        return self._values

    def learn(self, gradient: Values, settings: Refinement, share: float) -> None:
        rate = np.float32(share * settings.vector_rate) * self._size
        self._values = self._values - rate * self._mean.direction(gradient)


class _Adam:
    """Directions of about length 1 for every weight (Adam, arXiv 1412.6980)."""

    FIRST, SECOND = 0.9, 0.95

    def __init__(self) -> None:
        self._count = 0
        self._mean: NDArray[np.float32] | float = 0.0
        self._square: NDArray[np.float32] | float = 0.0

    def direction(self, gradient: Values) -> Values:
        """The next step's direction."""
        self._count += 1
        first, second = np.float32(self.FIRST), np.float32(self.SECOND)
        self._mean = first * self._mean + (1 - first) * gradient
        self._square = second * self._square + (1 - second) * gradient * gradient
        mean = self._mean / np.float32(1 - self.FIRST**self._count)
        square = self._square / np.float32(1 - self.SECOND**self._count)
        made: Values = mean / (np.sqrt(square) + np.float32(1e-12))
        return made
