"""How much work a model is: the matrices and widths that times follow from, per layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edge.errors import BadGraph
from edge.graph import Attention, Graph, Int8, Linear, Subgraph


@dataclass(frozen=True)
class Matrix:
    """A weight matrix [out, width]."""

    out: int
    width: int

    @property
    def weights(self) -> int:
        return self.out * self.width


@dataclass(frozen=True)
class Projections:
    """The matrices of one subgraph, and the values that go in and come out of them per token."""

    matrices: tuple[Matrix, ...]
    values: int

    @property
    def weights(self) -> int:
        return sum(matrix.weights for matrix in self.matrices)


@dataclass(frozen=True)
class LayerWork:
    """One layer; `width` is the residual's, `query_width` and `kv_width` those of all heads."""

    width: int
    query_width: int
    kv_width: int
    window: int | None
    qkv: Projections
    output: Projections
    feed_forward: Projections

    @property
    def projections(self) -> tuple[tuple[str, Projections], ...]:
        """The subgraphs that run on the NPU, with their names."""
        return ("qkv", self.qkv), ("output", self.output), ("feed_forward", self.feed_forward)

    @property
    def weights(self) -> int:
        return sum(projections.weights for _, projections in self.projections)


@dataclass(frozen=True)
class ModelWork:
    """A whole model."""

    name: str
    layers: tuple[LayerWork, ...]
    head: Matrix

    @property
    def weights(self) -> int:
        """Weights of all layers, without embedding and head."""
        return sum(layer.weights for layer in self.layers)

    @property
    def kv_values(self) -> int:
        """Keys and values of one token in all layers."""
        return sum(2 * layer.kv_width for layer in self.layers)


def uniform_work(
    name: str,
    *,
    layers: int,
    width: int,
    query_width: int,
    kv_width: int,
    feed_forward: int,
    vocabulary: int,
    matrices: int = 3,
) -> ModelWork:
    """A model of equal layers with full attention, and `matrices`, 2 or 3, in its feed-forward."""
    up = (Matrix(feed_forward, width),) * (matrices - 1)
    layer = LayerWork(
        width,
        query_width,
        kv_width,
        None,
        _projections([Matrix(query_width, width), *[Matrix(kv_width, width)] * 2], [width]),
        _projections([Matrix(width, query_width)], [query_width]),
        _projections([*up, Matrix(width, feed_forward)], [width, feed_forward]),
    )
    return ModelWork(name, (layer,) * layers, Matrix(vocabulary, width))


def graph_work(name: str, graph: Graph) -> ModelWork:
    """The work of a graph. Raises BadGraph where a layer lacks one of the four subgraphs."""
    by_layer: dict[int, dict[str, Subgraph]] = {}
    for subgraph in graph.subgraphs:
        if subgraph.layer is not None:
            by_layer.setdefault(subgraph.layer, {})[subgraph.kind] = subgraph
    layers = tuple(_layer(graph, index, by_layer[index]) for index in sorted(by_layer))
    heads = [op for op in graph.subgraphs[-1].ops if isinstance(op, Linear)]
    if not layers or not heads:
        raise BadGraph("the graph has no layers, or no head", "plan a language model")
    return ModelWork(name, layers, _matrix(graph, heads[-1]))


def _layer(graph: Graph, index: int, parts: dict[str, Subgraph]) -> LayerWork:
    missing = {"qkv", "attention", "output", "feed_forward"} - parts.keys()
    if missing:
        raise BadGraph(f"layer {index} has no {', '.join(sorted(missing))} subgraph")
    attention = next(op for op in parts["attention"].ops if isinstance(op, Attention))
    cache = graph.caches[attention.cache]
    linear = {kind: _linear(graph, part) for kind, part in parts.items()}
    return LayerWork(
        width=linear["output"].matrices[0].out,
        query_width=linear["output"].matrices[0].width,
        kv_width=cache.kv_heads * cache.head_dim,
        window=attention.window,
        qkv=linear["qkv"],
        output=linear["output"],
        feed_forward=linear["feed_forward"],
    )


def _linear(graph: Graph, subgraph: Subgraph) -> Projections:
    """A subgraph's matrices; projections that share an input read it once."""
    rounded = {op.out: op.x for op in subgraph.ops if isinstance(op, Int8)}
    linear = [op for op in subgraph.ops if isinstance(op, Linear)]
    matrices = [_matrix(graph, op) for op in linear]
    inputs = {rounded.get(op.x, op.x): m.width for op, m in zip(linear, matrices, strict=True)}
    return _projections(matrices, inputs.values())


def _projections(matrices: Iterable[Matrix], inputs: Iterable[int]) -> Projections:
    made = tuple(matrices)
    return Projections(made, sum(inputs) + sum(matrix.out for matrix in made))


def _matrix(graph: Graph, op: Linear) -> Matrix:
    out, width = graph.tensor(op.weight).shape
    return Matrix(out, width)
