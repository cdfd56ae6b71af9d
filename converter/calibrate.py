"""Calibration: samples go through a model op by op, and what every op reads can be seen.

All samples take an op before any takes the next, so that a quantizer sees a layer's inputs whole,
replaces its weights, and what follows sees what the quantized layer made. Only the weights of the
op at hand are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from converter.weights import Weights
from edge.formats import F32
from edge.graph import Attention, Cache, Graph, Op
from edge.kvcache import KVCache
from edge.planes import StoredTensor
from edge.reference import FUNCTIONS, Step, Values

Tokens = NDArray[np.int32]


class Tensors(Protocol):
    """Weights as the reference interpreter's ops ask for them."""

    def dense(self, name: str) -> Values:
        """A whole tensor in float32."""
        ...

    def stored(self, name: str) -> StoredTensor:
        """A tensor whose rows are looked up."""
        ...


class FloatTensors:
    """A checkpoint's tensors in float32, read when asked for; `replace` puts others in their place.

    What was replaced is kept in memory until `forget`.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._replaced: dict[str, Values] = {}

    def dense(self, name: str) -> Values:
        """The tensor as it was replaced, else as it is in the checkpoint."""
        if name in self._replaced:
            return self._replaced[name]
        return np.concatenate([block for _, block in self._weights.blocks(name)])

    def stored(self, name: str) -> StoredTensor:
        values = self.dense(name)
        return StoredTensor(name, F32, values.shape, {"values": values})

    def replace(self, name: str, values: Values) -> None:
        """Let `dense` give these values from now on."""
        self._replaced[name] = values

    def forget(self, name: str) -> None:
        """Let go of replaced values that no later op reads."""
        self._replaced.pop(name, None)


class Walk:
    """Samples on their way through a graph: iterating gives each op before it runs.

        for op in Walk(graph, tensors, samples):
            if isinstance(op, Linear):
                x = walk.value(op.x)                  # [tokens of all samples, width]

    The op runs when the loop goes on, with the weights that `tensors` has by then. `value` gives
    anything that the op or a later one reads, and the logits at the end. Every sample is a sequence
    of its own from position 0, no longer than the graph's context.
    """

    def __init__(self, graph: Graph, tensors: Tensors, samples: Sequence[Tokens]) -> None:
        self.graph = graph
        self.samples = [np.asarray(sample, np.int32) for sample in samples]
        self._tensors = tensors
        self._values: list[dict[str, Values]] = [{} for _ in samples]
        self._last_use = {name: i for i, op in enumerate(graph.ops()) for name in op.inputs()}
        self._ran = 0

    def __iter__(self) -> Iterator[Op]:
        for op in list(self.graph.ops())[self._ran :]:
            yield op
            self._run(op)
            self._drop(self._ran, op)
            self._ran += 1

    def fork(self, tensors: Tensors) -> Walk:
        """Another walk from the op that this one is at, on the same values, with other weights."""
        other = Walk(self.graph, tensors, self.samples)
        other._values = [dict(values) for values in self._values]
        other._ran = self._ran
        return other

    def finish(self) -> Values:
        """Run what is left; returns the logits over all samples, [tokens, vocabulary]."""
        for _ in self:
            pass
        return self.value(self.graph.last.out)

    def value(self, name: str) -> Values:
        """A value over all samples, [tokens, width]."""
        return np.concatenate(self.parts(name))

    def parts(self, name: str) -> list[Values]:
        """A value of each sample, [tokens, width] each."""
        return [values[name] for values in self._values]

    def _run(self, op: Op) -> None:
        tensors = _Once(self._tensors)
        function: Callable[..., Values] = FUNCTIONS[type(op)]
        layers: tuple[Cache, ...] = ()
        if isinstance(op, Attention):  # a cache of its own a sample, which goes when it is done
            layers, op = (self.graph.caches[op.cache],), replace(op, cache=0)
        for tokens, values in zip(self.samples, self._values, strict=True):
            cache = KVCache(layers, len(tokens))
            cache.reserve(len(tokens))
            step = Step(tokens, len(tokens), len(tokens), cache, values)
            values[op.out] = function(op, step, tensors)

    def _drop(self, index: int, op: Op) -> None:
        """Let go of what no later op reads."""
        for name in op.inputs():
            if self._last_use[name] == index:
                for values in self._values:
                    values.pop(name, None)


class _Once:
    """Tensors of one op, read once for all samples."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self._dense: dict[str, Values] = {}
        self._stored: dict[str, StoredTensor] = {}

    def dense(self, name: str) -> Values:
        if name not in self._dense:
            self._dense[name] = self._tensors.dense(name)
        return self._dense[name]

    def stored(self, name: str) -> StoredTensor:
        if name not in self._stored:
            self._stored[name] = self._tensors.stored(name)
        return self._stored[name]
