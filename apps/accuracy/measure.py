"""KL divergence of many forms of one model against the float model, over the same sequences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converter.calibrate import FloatTensors, Tensors, Tokens, Walk
from converter.models.builder import Model
from converter.samples import Samples, draw_samples
from converter.weights import Weights
from edge.graph import Graph
from edge.reference import Values

LogProbs = NDArray[np.float64]

# Not the seed that a conversion draws its samples with: the model is not asked what it was shown.
_SEED = 90


@dataclass(frozen=True)
class Score:
    """Means over predicted tokens: KL in nats, and the share whose likeliest token is the same."""

    kl: float
    perplexity: float
    agreement: float


@dataclass(frozen=True)
class Row:
    """One line of the table. `byte_count` is of all weights as stored, scales included."""

    name: str
    method: str
    target: str
    byte_count: int
    bits_per_weight: float
    score: Score
    peer: bool = False


class Exact:
    """What the float model, in the reference interpreter, says of sequences."""

    def __init__(self, model: Model, weights: Weights, samples: Samples) -> None:
        self.samples = samples
        self.graph = model.graph
        self.logits = run_all(model.graph, FloatTensors(weights), samples)
        self._log_probs = log_softmax(self.logits)

    def score(self, logits: Values) -> Score:
        """Compare logits [tokens of all sequences, vocabulary]."""
        exact, made = self._log_probs, log_softmax(logits)
        divergence = (np.exp(exact) * (exact - made)).sum(axis=-1)
        agreement = (exact.argmax(axis=-1) == made.argmax(axis=-1)).mean()
        return Score(float(divergence.mean()), math.exp(self._nll(made)), float(agreement))

    def _nll(self, log_probs: LogProbs) -> float:
        first, total, count = 0, 0.0, 0
        for sequence in self.samples.sequences:
            rows = log_probs[first : first + len(sequence) - 1]
            total -= float(rows[np.arange(len(rows)), sequence[1:]].sum())
            count, first = count + len(rows), first + len(sequence)
        return total / count


def run_all(graph: Graph, tensors: Tensors, samples: Samples) -> Values:
    """Logits of the reference interpreter, [tokens of all sequences, vocabulary]."""
    return Walk(graph, tensors, samples.sequences).finish()


def each(logits: Callable[[Tokens], Values], sequences: Sequence[Tokens]) -> Values:
    """Logits of a program that takes one sequence at a time."""
    return np.concatenate([logits(sequence) for sequence in sequences])


def log_softmax(logits: NDArray[np.floating]) -> LogProbs:
    """Log probabilities over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    normed: LogProbs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normed


def held_out(model: Model, weights: Weights, start: int, length: int, count: int) -> Samples:
    """Sequences drawn from the float model, with a seed of their own."""
    number = max(count // length, 1)
    return draw_samples(model.graph, FloatTensors(weights), start, length, number, _SEED)
