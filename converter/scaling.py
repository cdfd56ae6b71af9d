"""Activation-aware scales of a whole model: found layer by layer, folded into what is in front.

One walk of the samples through the float model; at every input of projections the scales are
searched (`quantize.awq`), and folded into what makes it: the weights of a norm, the rows of `up`
before the gate, the rows of `v` before attention. So the graph stays as it is.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converter.calibrate import FloatTensors, Walk
from converter.fold import Fold, Folds, Scale, combine
from converter.plan import PlannedTensor
from converter.quantize.awq import Layer, Rounding, search_scales
from converter.samples import Samples
from converter.uses import Uses
from converter.weights import Weights
from edge.graph import Attention, Gate, Graph, Linear, Norm
from edge.watch import Watcher


@dataclass(frozen=True)
class Place:
    """An input that projections alone read, where its channels may be scaled.

    `divided` are the tensors whose rows make the channels; `sources` [width] which row each channel
    comes from: attention reads a value head several times.
    """

    value: str
    divided: tuple[str, ...]
    sources: NDArray[np.intp]


def places(graph: Graph) -> Iterator[Place]:
    """Every place of a graph; inputs that anything else makes, such as a rounding, have none."""
    uses = Uses(graph)
    widths = {name: shape[1] for name, shape in graph.shapes().items()}
    for value in dict.fromkeys(op.x for op in graph.ops() if isinstance(op, Linear)):
        made, width = uses.made[value], widths[value]
        if not uses.projections(value):
            continue
        if (
            isinstance(made, Norm)
            and uses.own(made)
            and graph.tensor(made.weight).shape == (width,)
        ):
            yield Place(value, (made.weight,), np.arange(width))
        elif isinstance(made, Gate) and (up := uses.only_source(made.up)):
            yield Place(value, up.weights(), np.arange(width))
        elif isinstance(made, Attention) and (source := uses.only_source(made.value)):
            yield Place(value, source.weights(), _value_rows(graph, made, width))


def _value_rows(graph: Graph, op: Attention, width: int) -> NDArray[np.intp]:
    """For every channel of attention's output, the row of v that it is a mean of."""
    cache = graph.caches[op.cache]
    rows = np.arange(cache.kv_heads * cache.head_dim).reshape(cache.kv_heads, 1, -1)
    return np.broadcast_to(rows, (cache.kv_heads, width // rows.size, cache.head_dim)).reshape(-1)


def find_scales(
    weights: Weights,
    planned: Mapping[str, PlannedTensor],
    kept: Container[str],
    samples: Samples,
    rounding: Rounding,
    watcher: Watcher,
) -> Folds:
    """Scales of all places whose projections are all `planned` to be quantized by calibration.

    Tensors that are `kept`, integers of the source, are not divided.
    Raises MissingDependency without Numba, BadWeights where inputs overflow.
    """
    graph = weights.model.graph
    uses = Uses(graph)
    open_places = {
        place.value: place
        for place in places(graph)
        if all(op.weight in planned for op in uses.projections(place.value))
        and not any(name in kept for name in place.divided)
    }
    watcher.start("scales", len(open_places), "inputs")
    tensors, folds = FloatTensors(weights), dict[str, Fold]()
    walk = Walk(graph, tensors, samples.sequences)
    for op in walk:
        if not isinstance(op, Linear):
            continue
        place = open_places.pop(op.x, None)
        if place is not None:
            folds = combine(folds, _fold(place, walk, uses, tensors, planned, rounding))
            watcher.advance(1)
        if not open_places:
            break
    return folds


def _fold(
    place: Place,
    walk: Walk,
    uses: Uses,
    tensors: FloatTensors,
    planned: Mapping[str, PlannedTensor],
    rounding: Rounding,
) -> Folds:
    names = [op.weight for op in uses.projections(place.value)]
    x = walk.value(place.value).astype(np.float64)
    layers = [Layer(planned[name].form, tensors.dense(name)) for name in names]
    scales = search_scales(layers, x.T @ x / len(x), place.sources, rounding)
    if scales is None:
        return {}
    divided = dict.fromkeys(place.divided, Fold(left=(Scale(1 / scales),)))
    return divided | dict.fromkeys(names, Fold(right=(Scale(scales[place.sources]),)))
