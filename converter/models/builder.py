"""Builds a graph layer by layer, and remembers where each of its tensors comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge.graph import (
    Add,
    Attention,
    Cache,
    Embed,
    Gate,
    GateFunction,
    Graph,
    Int8,
    Linear,
    Norm,
    Op,
    Role,
    Rope,
    Softcap,
    Subgraph,
    SubgraphKind,
    Take,
    Tensor,
)

Transform = Literal["as_is", "plus_one", "ternarize"]


@dataclass(frozen=True)
class Origin:
    """Where a tensor of the graph comes from in the checkpoint.

    `name` and `shape` are the checkpoint's; `first_row` is where the tensor starts in it, for
    checkpoints that fuse several projections in one. `transform` is what is done to the values:
    "plus_one" for norms that multiply by 1 + weight, "ternarize" for BitNet's master weights.
    """

    name: str
    shape: tuple[int, ...]
    first_row: int = 0
    transform: Transform = "as_is"


@dataclass(frozen=True)
class Fused:
    """A projection stored as rows of a larger one: `name` has `rows` rows, ours from `first`."""

    name: str
    rows: int
    first: int


@dataclass(frozen=True)
class Model:
    """What a model file makes of a config: the graph, and a source for each of its tensors.

    `ignored` are patterns (fnmatch) of checkpoint tensors that the model does not need; any other
    tensor that is left over stops the conversion, since it would be math left out.
    """

    graph: Graph
    origins: Mapping[str, Origin]
    constants: Mapping[str, NDArray[np.float32]]
    ignored: tuple[str, ...] = ()


class Builder:
    """Adds ops one at a time; every method returns the name of the value made.

    Tensors are named after the layer ("layers.3.q"). In the checkpoint they are `stem`, the layer,
    and the name given as `source` (without ".weight" or ".bias"); the head, outside the stem, is
    `head`. `linear_transform` and `int8_inputs` hold for all linear projections.
    """

    def __init__(
        self,
        vocabulary: int,
        context: int,
        *,
        stem: str = "model.",
        head: str = "lm_head.weight",
        ignored: tuple[str, ...] = (),
    ) -> None:
        self.vocabulary = vocabulary
        self.context = context
        self.stem = stem
        self.head_source = head
        self.ignored = ("*.rotary_emb.inv_freq", *ignored)
        self.linear_transform: Transform = "as_is"
        self.int8_inputs = False
        self._layer: int | None = None
        self._tensors: dict[str, Tensor] = {}
        self._origins: dict[str, Origin] = {}
        self._constants: dict[str, NDArray[np.float32]] = {}
        self._caches: list[Cache] = []
        self._subgraphs: list[tuple[SubgraphKind, int | None, list[Op]]] = []
        self._widths: dict[str, int] = {}

    # Structure.

    def begin(self, kind: SubgraphKind, layer: int | None = None) -> None:
        """Start a subgraph; ops that follow belong to it."""
        self._layer = layer
        self._subgraphs.append((kind, layer, []))

    def finish(self) -> Model:
        """The model, validated, as a decode graph of one row."""
        graph = Graph(
            rows=1,
            logit_rows=1,
            vocabulary=self.vocabulary,
            context=self.context,
            caches=tuple(self._caches),
            tensors=tuple(self._tensors.values()),
            subgraphs=tuple(Subgraph(k, layer, tuple(ops)) for k, layer, ops in self._subgraphs),
        )
        return Model(graph.validate(), self._origins, self._constants, self.ignored)

    # Ops.

    def embed(self, source: str, width: int, *, tied: bool, scale: float = 1.0) -> str:
        """Embedding lookup. `tied` says that the head uses the same tensor."""
        role: Role = "head" if tied else "embedding"
        table = self._matrix("embed", source, (self.vocabulary, width), role)
        return self._add(Embed(self._value("embedded"), table, scale), width)

    def norm(
        self, x: str, name: str, source: str, eps: float, *, width: int = 0, plus_one: bool = False
    ) -> str:
        """RMS norm over runs of `width` elements (the whole of x unless given)."""
        size = width or self._widths[x]
        weight = self._vector(name, source + ".weight", size, "plus_one" if plus_one else "as_is")
        return self._add(Norm(self._value(name), x, weight, eps), self._widths[x])

    def linear(
        self, x: str, name: str, source: str | Fused, width: int, *, bias: bool = False
    ) -> str:
        """Linear projection of x to `width`."""
        if self.int8_inputs:
            x = self._int8(x)
        shape = (width, self._widths[x])
        weight = self._matrix(name, source, shape, "linear", self.linear_transform)
        bias_name = None
        if bias:
            assert isinstance(source, str)
            bias_name = self._vector(name + ".bias", source + ".bias", width, "as_is")
        return self._add(Linear(self._value(name), x, weight, bias_name), width)

    def rope(self, x: str, name: str, frequencies: str, head_dim: int, scale: float) -> str:
        """Rotary embedding with a constant made by `constant`."""
        op = Rope(self._value(name), x, frequencies, head_dim, scale)
        return self._add(op, self._widths[x])

    def attention(
        self,
        query: str,
        key: str,
        value: str,
        cache: Cache,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> str:
        """Attention over a cache of its own."""
        self._caches.append(cache)
        index = len(self._caches) - 1
        op = Attention(self._value("attended"), query, key, value, index, scale, window, softcap)
        return self._add(op, self._widths[query])

    def gate(self, gate: str, up: str, function: GateFunction) -> str:
        """function(gate) * up."""
        return self._add(Gate(self._value("gated"), gate, up, function), self._widths[gate])

    def add(self, a: str, b: str, name: str) -> str:
        """Residual sum."""
        return self._add(Add(self._value(name), a, b), self._widths[a])

    def head(self, x: str, *, tied: bool, softcap: float | None = None) -> None:
        """Logits of the rows taken, with the embedding's own tensor where `tied`."""
        weight = "embed"
        if tied:  # some checkpoints store the shared tensor twice
            self.ignored += (self.head_source,)
        else:
            origin = Origin(self.head_source, (self.vocabulary, self._widths[x]))
            weight = self._declare(Tensor("head", origin.shape, "head"), origin)
        logits = self._add(Linear(self._value("logits"), x, weight), self.vocabulary)
        if softcap is not None:
            self._add(Softcap(self._value("capped"), logits, softcap), self.vocabulary)

    def take(self, x: str) -> str:
        """Keep the rows whose logits are asked for."""
        return self._add(Take(self._value("taken"), x), self._widths[x])

    def constant(self, name: str, values: NDArray[np.float32]) -> str:
        """A vector that the converter computes, such as RoPE frequencies; made once a name."""
        if name not in self._constants:
            self._constants[name] = values
            self._tensors[name] = Tensor(name, values.shape, "constant")
        return name

    # Bookkeeping.

    def _int8(self, x: str) -> str:
        name = x + ".int8"
        return name if name in self._widths else self._add(Int8(name, x), self._widths[x])

    def _add(self, op: Op, width: int) -> str:
        self._subgraphs[-1][2].append(op)
        self._widths[op.out] = width
        return op.out

    def _value(self, name: str) -> str:
        return name if self._layer is None else f"layers.{self._layer}.{name}"

    def _source(self, name: str) -> str:
        return f"{self.stem}{self._value(name)}"

    def _matrix(
        self,
        name: str,
        source: str | Fused,
        shape: tuple[int, int],
        role: Role,
        transform: Transform = "as_is",
    ) -> str:
        if isinstance(source, Fused):
            origin = Origin(
                self._source(source.name + ".weight"),
                (source.rows, shape[1]),
                source.first,
                transform,
            )
        else:
            origin = Origin(self._source(source + ".weight"), shape, 0, transform)
        return self._declare(Tensor(self._value(name), shape, role), origin)

    def _vector(self, name: str, source: str, size: int, transform: Transform) -> str:
        origin = Origin(self._source(source), (size,), 0, transform)
        return self._declare(Tensor(self._value(name), (size,), "vector"), origin)

    def _declare(self, tensor: Tensor, origin: Origin) -> str:
        self._tensors[tensor.name] = tensor
        self._origins[tensor.name] = origin
        return tensor.name
